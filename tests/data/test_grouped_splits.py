"""Groups and copies, which ``assign_splits`` never parts, and the pattern that names groups."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.discover import Sample, discover_folder
from finetune.data.splits import assign_splits, group_by_pattern
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


rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 12))),
    min_size=1,
    max_size=80,
)


sets = st.lists(st.lists(st.integers(0, 90), max_size=4), max_size=6)


def to_samples(rows):
    return [
        Sample(f"{c}/{i}.jpg", (c,), None, None if group is None else f"p{group}")
        for i, (c, group) in enumerate(rows)
    ]


def to_paths(sets, samples):
    """Name the samples of each set; numbers beyond the last are unknown paths."""
    paths = dict(enumerate(sample.path for sample in samples))
    return [[paths.get(index, f"unknown/{index}") for index in numbers] for numbers in sets]


def check_nothing_is_parted(result, together):
    assert all(len(splits) == 1 for splits in homes_of(result, lambda s: s.group).values())
    split_of = {sample.path: sample.split for sample in result}
    for paths in together:
        assert len({split_of[path] for path in paths if path in split_of}) <= 1


def homes_of(samples, name_of):
    """Map each name to the splits that its samples are in."""
    homes = {}
    for sample in samples:
        if name_of(sample) is not None:
            homes.setdefault(name_of(sample), set()).add(sample.split)
    return homes


def grouped(samples, group_of):
    return [replace(sample, group=group_of(sample)) for sample in samples]


def number(sample):
    return int(sample.path.rpartition("/")[2].partition(".")[0])


@settings(max_examples=100)
@given(rows, sets, st.integers(0, 9), st.randoms())
def test_groups_and_copies_are_never_parted(rows, sets, seed, random):
    samples = to_samples(rows)
    together = to_paths(sets, samples)
    result = split(samples, seed=seed, together=together)
    check_nothing_is_parted(result, together)
    counts = count(result)
    assert all(counts[name, "train"] >= 1 for name, _ in rows)
    random.shuffle(samples)
    random.shuffle(together)
    assert split(samples, seed=seed, together=[paths[::-1] for paths in together]) == result


def test_groups_of_one_change_nothing():
    samples = make(a=30, b=7)
    alone = split(grouped(samples, lambda s: s.path), together=[[s.path] for s in samples])
    assert [s.split for s in alone] == [s.split for s in split(samples)]


def test_equal_groups_keep_the_fractions():
    samples = make(a=100, b=100)
    fives = grouped(samples, lambda s: f"{s.labels[0]}{number(s) // 5}")
    assert count(split(fives)) == count(split(samples))


def test_large_groups_still_reach_val():
    thirds = grouped(make(a=99), lambda s: str(number(s) // 33))
    counts = count(split(thirds, val=0.15, test=0.15))
    assert counts == {("a", "train"): 33, ("a", "val"): 33, ("a", "test"): 33}


def test_a_rare_class_within_large_groups_reaches_val():
    samples = grouped(make(common=90, rare=9), lambda s: str(number(s) % 3))
    counts = count(split(samples, val=0.2, test=0))
    assert counts["rare", "val"] == 3
    assert counts["common", "val"] == 30


def test_a_group_in_two_given_splits_stays_as_it_came():
    came = [
        Sample("a/1.jpg", ("a",), "train", "x"),
        Sample("a/2.jpg", ("a",), "val", "x"),
        Sample("a/3.jpg", ("a",), "test", "x"),
    ]
    assert split(came, together=[["a/1.jpg", "a/3.jpg"]]) == tuple(came)


def test_a_given_test_draws_nothing_after_it():
    """What belongs with one of its images is divided as one unit, and is never put into test."""
    came = [Sample(f"{i}.jpg", ("a",), "train", f"p{i % 4}") for i in range(40)]
    came += [Sample(f"test{i}.jpg", ("a",), "test", f"p{i}") for i in range(2)]
    result = split(came, val=0.25)
    divided = [sample for sample in result if not sample.path.startswith("test")]
    assert all(len(splits) == 1 for splits in homes_of(divided, lambda s: s.group).values())
    assert Counter(sample.split for sample in result) == {"train": 30, "val": 10, "test": 2}
    copies = [["1.jpg", "test0.jpg"], ["test0.jpg", "2.jpg"]]
    for seed in range(20):
        homes = {s.path: s.split for s in split(came, val=0.25, seed=seed, together=copies)}
        assert homes["1.jpg"] == homes["2.jpg"]


def test_groups_by_pattern():
    samples = [*make(a=2), Sample("a/person12_3.jpg", ("a",), None, "old")]
    assert [s.group for s in group_by_pattern(samples, r"person(\d+)_")] == [None, None, "12"]
    assert [s.group for s in group_by_pattern(samples, r"person\d+")] == [None, None, "person12"]
    both = group_by_pattern(samples, r"^(\w+)/person(\d+)|^(\w)/0")
    assert [s.group for s in both] == ["//a", None, "a/12/"]
    assert [s.group for s in group_by_pattern(samples, r"/(1?)")] == [None, "1", None]
    assert group_by_pattern([], "x") == ()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("person(d+)_", r"matches no path, such as `a/0.jpg`. Quote it"),
        ("A/(.)", r"Did you mean `\(\?i\)A/\(\.\)`"),
        ("person(", "is no regular expression"),
        ("a{99999999999}", "is no regular expression: the repetition number is too large"),
    ],
)
def test_bad_patterns(pattern, message):
    with pytest.raises(DataError, match=message):
        group_by_pattern(make(a=3), pattern)


@pytest.mark.parametrize("together", [False, True])
def test_chest_xray_by_person(real_data, together):
    """Both as its folders divide it, and as one folder without splits."""
    samples = group_by_pattern(
        discover_folder(real_data / "data/chest_xray").samples, r"person(\d+)_"
    )
    val, test = 0.2, 0.0
    if together:
        samples = [replace(sample, split=None) for sample in samples]
        val, test = 0.2, 0.15
    result = split(samples, val, test)
    moved = [s for s in result if together or s.split != "test"]
    homes = homes_of(moved, lambda s: s.group)
    overlap = sum(len(splits) > 1 for splits in homes.values())
    whole, counts = Counter(name for s in moved for name in s.labels), count(moved)
    for to in ("train", "val", *(["test"] if together else [])):
        size = sum(counts[name, to] for name in whole)
        for name in whole:
            share, expected = counts[name, to] / size, whole[name] / len(moved)
            print(f"{to}: {name} {share:.1%} of {size}, {expected:.1%} of all")
            assert abs(share - expected) < 0.02
    print(f"{len(homes)} persons, {overlap} in two splits")
    assert overlap == 0
    assert len(homes) > 1000
    assert abs(sum(s.split == "val" for s in moved) / len(moved) - 0.2) < 0.02
