import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.discover import Sample
from finetune.data.splits import (
    apply_split_file,
    assign_splits,
)
from finetune.errors import DataError


def make(**counts):
    return [
        Sample(f"{name}/{i}.jpg", (name,), None) for name, n in counts.items() for i in range(n)
    ]


def split(samples, val=0.2, test=0.1, seed=0, together=()):
    return assign_splits(
        samples, val_fraction=val, test_fraction=test, seed=seed, together=together
    )


def count(samples):
    return Counter((name, sample.split) for sample in samples for name in sample.labels)


fractions = st.floats(0, 0.99, exclude_max=True)
class_sizes = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1)


@given(class_sizes, fractions, fractions, st.integers(), st.randoms())
def test_rules_hold_for_any_counts(sizes, val, test, seed, random):
    if val + test >= 1:
        val, test = val / 2, test / 2
    samples = make(**sizes)
    result = split(samples, val, test, seed)
    assert sorted(sample.path for sample in result) == [sample.path for sample in result]
    assert {(s.path, s.labels) for s in result} == {(s.path, s.labels) for s in samples}
    counts = count(result)
    for name, size in sizes.items():
        assert counts[name, "train"] >= 1
        assert (counts[name, "val"] >= 1) == (val > 0 and size >= 2)
        assert counts[name, "test"] <= size * test + 0.5
        assert counts[name, "val"] <= max(1, size * val + 0.5)
        if counts[name, "train"] > 1:
            assert abs(counts[name, "test"] - size * test) <= 0.5
            assert counts[name, "val"] == 1 or abs(counts[name, "val"] - size * val) <= 0.5
    random.shuffle(samples)
    assert split(samples, val, test, seed) == result


@pytest.mark.parametrize(
    ("size", "val", "test", "expected"),
    [
        (1, 0.5, 0.4, (1, 0, 0)),
        (2, 0.1, 0.1, (1, 1, 0)),
        (2, 0.1, 0.8, (1, 1, 0)),
        (3, 0.4, 0.4, (1, 1, 1)),
        (3, 0.0, 0.9, (1, 0, 2)),
        (10, 0.15, 0.15, (6, 2, 2)),
        (10, 0.14, 0.14, (8, 1, 1)),
        (100, 0.2, 0.1, (70, 20, 10)),
    ],
)
def test_counts(size, val, test, expected):
    counts = count(split(make(a=size), val, test))
    assert tuple(counts["a", name] for name in ("train", "val", "test")) == expected


def test_is_the_same_on_every_machine():
    # The order of `printf '0\\0cat/1.jpg' | sha256sum` and so on is 1, 5, 3 … and 5, 2, 3 ….
    result = split(make(cat=6, dog=6), val=0.3, test=0.2)
    homes = {name: {s.path for s in result if s.split == name} for name in ("val", "test")}
    assert homes["test"] == {"cat/1.jpg", "dog/5.jpg"}
    assert homes["val"] == {"cat/5.jpg", "cat/3.jpg", "dog/2.jpg", "dog/3.jpg"}


def test_python_hash_seed_does_not_matter():
    program = (
        "from finetune.data.discover import Sample\n"
        "from finetune.data.splits import assign_folds, assign_splits\n"
        "samples = [Sample(f'{c}/{i}', (c, 'x')[: 1 + i % 2], None, 'g' * (i % 3) or None)\n"
        "    for c in 'abc' for i in range(9)]\n"
        "pairs = [('a/0', 'b/3'), ('b/3', 'c/6')]\n"
        "print(assign_splits(samples, val_fraction=.3, test_fraction=.2, seed=3, together=pairs))\n"
        "print(assign_folds(samples, folds=3, fold=1, test_fraction=.2, seed=3, together=pairs))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_seeds_differ_and_classes_do_not_move_each_other():
    samples = make(a=50, b=50)
    first = split(samples, seed=1)
    assert split(samples, seed=2) != first
    alone = split(make(a=50), seed=1)
    assert [sample for sample in first if sample.labels == ("a",)] == list(alone)


def given_splits(**counts):
    return [
        Sample(f"{name}/{c}/{i}.jpg", (c,), name)
        for name, n in counts.items()
        for c in "ab"
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        ({"train": 10, "val": 3, "test": 2}, {"train": 20, "val": 6, "test": 4}),
        ({"train": 10, "val": 3}, {"train": 20, "val": 6}),
        ({"train": 10, "test": 3}, {"train": 16, "val": 4, "test": 6}),
        ({"train": 10}, {"train": 14, "val": 4, "test": 2}),
    ],
)
def test_given_splits_stay(came, expected):
    samples = given_splits(**came)
    result = split(samples)
    assert Counter(sample.split for sample in result) == expected
    before = {sample.path: sample.split for sample in samples}
    assert all(before[s.path] in (s.split, "train") for s in result)


def test_no_fractions_leave_all_in_train():
    assert {sample.split for sample in split(make(a=5, b=5), val=0, test=0)} == {"train"}


def test_nothing_gives_nothing():
    assert split([]) == ()


def test_split_file_divides():
    samples = [*make(a=3), Sample("b/1.jpg", ("b",), "train", "mine")]
    rows = [
        Sample("b/1.jpg", ("b",), "val", "its"),
        Sample("a/2.jpg", ("a",), "train"),
        Sample("a/0.jpg", ("a",), "test", "its"),
    ]
    divided, left_out = apply_split_file(samples, rows)
    assert divided == (
        Sample("a/0.jpg", ("a",), "test", "its"),
        Sample("a/2.jpg", ("a",), "train", None),
        Sample("b/1.jpg", ("b",), "val", "mine"),
    )
    assert left_out == ("a/1.jpg",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Sample("x/1.jpg", ("a",), "val"), r"names `x/1.jpg`, .* Did you mean `a/1.jpg`"),
        (Sample("x/9.jpg", ("a",), "val"), r"names `x/9.jpg`, which the data lacks; .* root.$"),
        (Sample("a/1.jpg", ("b",), "val"), 'calls `a/1.jpg` "b", the data "a"'),
        (Sample("a/1.jpg", (), "val"), 'calls `a/1.jpg` nothing, the data "a"'),
        (Sample("a/1.jpg", ("a",), None), "gives `a/1.jpg` no split"),
    ],
)
def test_split_file_that_does_not_fit(row, message):
    with pytest.raises(DataError, match=message):
        apply_split_file(make(a=3), [row])


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (-0.1, 0, "val_fraction: got -0.1"),
        (0, 1, "test_fraction: got 1"),
        (0.5, 0.5, "less than 1"),
        (float("nan"), 0, "val_fraction: got nan"),
    ],
)
def test_bad_fractions(val, test, message):
    with pytest.raises(DataError, match=message):
        split(make(a=3), val, test)


def test_half_split_samples_are_refused():
    with pytest.raises(DataError, match=r"such as `a/0\.jpg`, have none"):
        split([*make(a=1), Sample("b/1.jpg", ("b",), "train")])
    with pytest.raises(DataError, match="for test only, expected some to train on"):
        split([Sample("b/1.jpg", ("b",), "test")])
