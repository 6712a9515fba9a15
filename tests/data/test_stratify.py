from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.discover import Sample
from finetune.data.stratify import deal_folds, hold_out
from finetune.data.units import make_units

label_sets = st.tuples(
    st.lists(st.floats(0.02, 0.8), min_size=2, max_size=8),
    st.integers(60, 250),
    st.randoms(use_true_random=False),
)


def draw_units(shares, size, random, *, seed):
    """Draw images that show each label by chance, one in each unit."""
    return make_units(
        [
            Sample(
                f"{i}.jpg",
                tuple(f"l{k}" for k, p in enumerate(shares) if random.random() < p),
                None,
            )
            for i in range(size)
        ],
        (),
        seed=seed,
    )


def count(units, places):
    return Counter(
        (name, place) for unit, place in zip(units, places, strict=True) for name, _ in unit.sizes
    )


# A few points are no bound for any labels: these are drawn once and for all.
@settings(max_examples=60, derandomize=True)
@given(label_sets, st.sampled_from([(0.2, 0.0), (0.15, 0.15), (0.3, 0.1)]), st.integers(0, 9))
def test_every_label_has_its_share(drawn, fractions, seed):
    units = draw_units(*drawn, seed=seed)
    val, test = fractions
    counts = count(units, hold_out(units, val_fraction=val, test_fraction=test))
    for name, size in Counter(name for unit in units for name, _ in unit.sizes).items():
        assert counts[name, "train"] >= 1
        if size >= 20:
            assert counts[name, "val"] / size == pytest.approx(val, abs=0.08)
            assert counts[name, "test"] / size == pytest.approx(test, abs=0.08)


@settings(max_examples=60, derandomize=True)
@given(label_sets, st.integers(0, 9))
def test_every_label_has_its_share_of_each_fold(drawn, seed):
    units = draw_units(*drawn, seed=seed)
    counts = count(units, deal_folds(units, 5))
    for name, size in Counter(name for unit in units for name, _ in unit.sizes).items():
        for fold in range(5):
            assert size == 1 or counts[name, fold] < size
            if size >= 20:
                assert counts[name, fold] / size == pytest.approx(0.2, abs=0.08)


def test_images_without_a_label_are_stratified_too():
    samples = [Sample(f"{i}.jpg", ("a",) if i < 50 else (), None) for i in range(100)]
    units = make_units(samples, (), seed=0)
    counts = count(units, hold_out(units, val_fraction=0.2, test_fraction=0.1))
    assert [counts["", split] for split in ("train", "val", "test")] == [35, 10, 5]


def test_a_label_beside_many_rare_ones():
    """Each rare label wants one of its two images in val; all of them would be half of `c`."""
    samples = [Sample(f"{i}.jpg", ("c", f"rare{i // 2}"), None) for i in range(40)]
    units = make_units(samples, (), seed=0)
    counts = count(units, hold_out(units, val_fraction=0.2, test_fraction=0.0))
    assert counts["c", "val"] == 8
