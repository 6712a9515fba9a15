"""``assign_folds``, which shares its units and its order with ``assign_splits``."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.discover import Sample
from finetune.data.splits import assign_folds, assign_splits
from finetune.errors import DataError


def make(**counts):
    return [
        Sample(f"{name}/{i}.jpg", (name,), None) for name, n in counts.items() for i in range(n)
    ]


def fold(samples, fold, folds=5, test=0.0, seed=0, together=()):
    return assign_folds(
        samples, folds=folds, fold=fold, test_fraction=test, seed=seed, together=together
    )


def count(samples):
    return Counter((name, sample.split) for sample in samples for name in sample.labels)


rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 12))),
    min_size=1,
    max_size=80,
)
sets = st.lists(st.lists(st.integers(0, 90), max_size=4), max_size=6)


@settings(max_examples=60)
@given(rows, sets, st.integers(2, 5), st.sampled_from([0.0, 0.2]), st.integers(0, 9), st.randoms())
def test_folds_are_a_partition(rows, sets, folds, test, seed, random):
    samples = [
        Sample(f"{name}/{i}.jpg", (name,), None, None if group is None else f"p{group}")
        for i, (name, group) in enumerate(rows)
    ]
    together = [[samples[i % len(samples)].path for i in numbers] for numbers in sets]
    try:
        results = [fold(samples, k, folds, test, seed, together) for k in range(folds)]
    except DataError as error:
        assert "too few for" in str(error)  # noqa: PT017 (or it works)
        return
    tests = {tuple(s.path for s in result if s.split == "test") for result in results}
    assert len(tests) == 1
    validated = Counter(s.path for result in results for s in result if s.split == "val")
    assert set(validated.values()) == {1}
    for result in results:
        split_of = {s.path: s.split for s in result}
        groups = [[s.path for s in samples if s.group == f"p{group}"] for group in range(13)]
        for paths in [*groups, *together]:
            assert len({split_of[path] for path in paths}) <= 1
        counts = count(result)
        assert all(counts[name, "train"] >= 1 for name, _ in rows)
    random.shuffle(samples)
    assert fold(samples, 0, folds, test, seed, together[::-1]) == results[0]


class_sizes = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1)


@given(class_sizes, st.integers(2, 5), st.integers(0, 99))
def test_folds_are_equal_where_nothing_is_grouped(sizes, folds, seed):
    samples = make(z=folds, **sizes)
    results = [fold(samples, k, folds, seed=seed) for k in range(folds)]
    totals = [Counter(s.split for s in result)["val"] for result in results]
    assert max(totals) - min(totals) <= 1
    for name, size in sizes.items():
        counts = [count(result)[name, "val"] for result in results]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == (size if size > 1 else 0)


def test_folds_of_groups_are_nearly_equal():
    samples = [
        Sample(f"{name}/{i}.jpg", (name,), None, f"{name}{i % groups}")
        for name, size, groups in (("a", 120, 11), ("b", 60, 7))
        for i in range(size)
    ]
    for index in range(4):
        counts = count(fold(samples, index, folds=4))
        assert 20 <= counts["a", "val"] <= 40
        assert 8 <= counts["b", "val"] <= 18


def test_the_only_unit_of_a_class_is_trained_on_in_every_fold():
    samples = [*make(a=10), *(replace(sample, group="one") for sample in make(rare=3))]
    for index in range(5):
        counts = count(fold(samples, index))
        assert counts == {("a", "train"): 8, ("a", "val"): 2, ("rare", "train"): 3}


def test_two_classes_that_need_the_same_unit_elsewhere():
    """With two folds, `x` can spare the last unit in one of them and `y` in the other."""
    labels = [("x", "z"), ("y", "z"), ("x", "y", "z")]
    samples = [Sample(f"{i}.jpg", names, None) for i, names in enumerate(labels)]
    for index in range(2):
        counts = count(fold(samples, index, folds=2))
        assert all(counts[name, "train"] >= 1 for name in "xyz")


def test_given_val_joins_the_folds_and_given_test_stays():
    came = [
        Sample(f"{split}/{name}/{i}.jpg", (name,), split)
        for split, size in (("train", 8), ("val", 2), ("test", 3))
        for name in "ab"
        for i in range(size)
    ]
    results = [fold(came, index, test=0.5) for index in range(5)]
    for result in results:
        assert {s.path for s in result if s.split == "test"} == {
            s.path for s in came if s.split == "test"
        }
        assert count(result)["a", "val"] == 2
    assert {s.path for result in results for s in result if s.split == "val"} == {
        s.path for s in came if s.split != "test"
    }


def test_another_seed_gives_other_folds():
    samples = make(a=50, b=50)
    assert fold(samples, 0, seed=1) != fold(samples, 0, seed=2)


@pytest.mark.parametrize(
    ("index", "folds", "test", "message"),
    [
        (5, 5, 0, "got fold 5 of 5"),
        (-1, 5, 0, "got fold -1 of 5"),
        (0, 1, 0, "at least 2 folds"),
        (0, 5, 1, "test_fraction: got 1"),
        (0, 11, 0, r"only 10 units .* too few for 11 folds"),
    ],
)
def test_bad_folds(index, folds, test, message):
    with pytest.raises(DataError, match=message):
        fold(make(a=5, b=5), index, folds, test)


def test_test_is_that_of_a_single_split():
    samples = make(a=50, b=30)
    alone = assign_splits(samples, val_fraction=0.2, test_fraction=0.2, seed=3)
    folded = fold(samples, 4, test=0.2, seed=3)
    assert [s.split == "test" for s in folded] == [s.split == "test" for s in alone]
