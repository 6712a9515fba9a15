import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.discover import Sample
from finetune.data.splits import assign_splits, read_groups, read_split, write_split
from finetune.errors import DataError


def make(**counts):
    return [Sample(f"{name}/{i}.jpg", name, None) for name, n in counts.items() for i in range(n)]


def split(samples, val=0.2, test=0.1, seed=0, groups=None):
    return assign_splits(samples, val_fraction=val, test_fraction=test, seed=seed, groups=groups)


def count(samples):
    return Counter((sample.class_name, sample.split) for sample in samples)


fractions = st.floats(0, 0.99, exclude_max=True)
class_sizes = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1)


@given(class_sizes, fractions, fractions, st.integers(), st.randoms())
def test_rules_hold_for_any_counts(sizes, val, test, seed, random):
    if val + test >= 1:
        val, test = val / 2, test / 2
    samples = make(**sizes)
    result = split(samples, val, test, seed)
    assert sorted(sample.path for sample in result) == [sample.path for sample in result]
    assert {(s.path, s.class_name) for s in result} == {(s.path, s.class_name) for s in samples}
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
        "from finetune.data.splits import assign_splits\n"
        "samples = [Sample(f'{c}/{i}', c, None) for c in 'abc' for i in range(9)]\n"
        "groups = {s.path: s.path[-1] for s in samples}\n"
        "for g in ({}, groups):\n"
        "    print(assign_splits(samples, val_fraction=.3, test_fraction=.2, seed=3, groups=g))\n"
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
    assert [sample for sample in first if sample.class_name == "a"] == list(alone)


def given_splits(**counts):
    return [
        Sample(f"{name}/{c}/{i}.jpg", c, name)
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


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 12))),
        min_size=1,
        max_size=80,
    ),
    st.integers(0, 9),
)
def test_a_group_is_never_in_two_splits(rows, seed):
    samples = [Sample(f"{c}/{i}.jpg", c, None) for i, (c, _) in enumerate(rows)]
    groups = {s.path: f"p{g}" for s, (_, g) in zip(samples, rows, strict=True) if g is not None}
    result = split(samples, groups=groups, seed=seed)
    homes = {}
    for sample in result:
        if sample.path in groups:
            homes.setdefault(groups[sample.path], set()).add(sample.split)
    assert all(len(splits) == 1 for splits in homes.values())
    counts = count(result)
    assert all(counts[name, "train"] >= 1 for name, _ in rows)
    assert result == split(samples[::-1], groups=groups, seed=seed)


def test_groups_of_one_change_nothing():
    samples = make(a=30, b=7)
    assert split(samples, groups={s.path: s.path for s in samples}) == split(samples)


def test_equal_groups_keep_the_fractions():
    samples = make(a=100, b=100)
    groups = {s.path: f"{s.class_name}{int(s.path[2:-4]) // 5}" for s in samples}
    assert count(split(samples, groups=groups)) == count(split(samples))


def test_large_groups_still_reach_val():
    samples = make(a=99)
    groups = {s.path: str(int(s.path[2:-4]) // 33) for s in samples}
    counts = count(split(samples, val=0.15, test=0.15, groups=groups))
    assert counts == {("a", "train"): 33, ("a", "val"): 33, ("a", "test"): 33}


def test_a_group_in_two_given_splits_is_refused():
    samples = [Sample("a/1.jpg", "a", "train"), Sample("a/2.jpg", "a", "val")]
    with pytest.raises(DataError, match=r"group `x` spans splits: a/1.jpg is in train, a/2.jpg"):
        split(samples, groups={"a/1.jpg": "x", "a/2.jpg": "x"})


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
        split([*make(a=1), Sample("b/1.jpg", "b", "train")])
    with pytest.raises(DataError, match="for test only, expected some to train on"):
        split([Sample("b/1.jpg", "b", "test")])


names = st.binary(min_size=1).map(
    lambda name: name.replace(b"/", b"").replace(b"\0", b"").decode("utf-8", "surrogateescape")
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        names.filter(lambda name: name not in ("", ".", "..") and name[1:3] != ":\\"),
        st.tuples(names.filter(bool), st.sampled_from([None, "train", "val", "test"])),
        min_size=1,
    )
)
def test_csv_keeps_any_file_name(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("split") / "split.csv"
    samples = tuple(Sample(f"d/{name}", label, to) for name, (label, to) in rows.items())
    groups = {sample.path: sample.class_name for sample in samples[1:]}
    write_split(file, samples)
    assert read_split(file) == samples
    write_split(file, samples, groups=groups)
    assert read_split(file) == samples
    assert read_groups(file) == groups


def test_csv_is_plain(tmp_path):
    file = tmp_path / "split.csv"
    samples = [Sample('-a,"b"\n.jpg', "cat", "train"), Sample("c.jpg", "dog", None)]
    write_split(file, samples)
    assert file.read_bytes() == (
        b'path,label,split\r\n"-a,""b""\n.jpg",cat,train\r\nc.jpg,dog,\r\n'
    )


def test_csv_of_a_spreadsheet(tmp_path):
    file = tmp_path / "split.csv"
    file.write_bytes(b"\xef\xbb\xbfsplit,note,label,path\r\nval,x,cat,./a//b.jpg\r\n")
    assert read_split(file) == (Sample("a/b.jpg", "cat", "val"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column `path`; got none"),
        ("path,labels,split\n", "no column `label`.*Did you mean `labels`"),
        ("path,label,split\n", "has no rows"),
        ("path,label,split\na.jpg,x,trian\n", "line 2: got split `trian`.*Did you mean `train`"),
        ("path,label,split\na.jpg,x,\n./a.jpg,x,\n", r"line 3: `a.jpg` came before"),
        ("path,label,split\n../a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\nb/../../a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\n/etc/a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\nC:\\a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\n,x,\n", "expected both"),
        ("path,label,split\na.jpg,,\n", "expected both"),
        ("path,label,split\na,b.jpg,x,\n", "line 2: expected 3 cells"),
        ("path,label,split\na.jpg,x\n", "line 2: expected 3 cells"),
        ('path,label,split\n"a.jpg,x,\n', "is not a CSV file"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    file = tmp_path / "split.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_split(file)


def test_missing_csv(tmp_path):
    with pytest.raises(DataError, match=r"split.csv cannot be read: No such file"):
        read_split(tmp_path / "split.csv")
