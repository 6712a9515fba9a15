import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from finetune.evaluation.proportions import (
    Limits,
    Proportion,
    clopper_pearson,
    exact_limits,
    is_scarce,
    jaccard_to_f1,
    limits_of_mean,
    perfect_ranking_limits,
)


def of_images(hits: int, misses: int) -> Proportion:
    return Proportion(np.repeat([1.0, 0.0], [hits, misses]), np.ones(hits + misses))


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.8, 0.95]))
def test_exact_limits_equal_scipy(hits: int, misses: int, level: float) -> None:
    limits = exact_limits(of_images(hits, misses), level)
    if not hits + misses:
        assert limits is None
        return
    expected = binomtest(hits, hits + misses).proportion_ci(level, method="exact")
    assert limits == pytest.approx((hits / (hits + misses), *expected))
    assert limits.low <= limits.value <= limits.high


@given(st.integers(1, 30), st.integers(1, 9))
def test_images_of_one_unit_count_once(units: int, per_unit: int) -> None:
    alike = Proportion(np.full(units, per_unit), np.full(units, float(per_unit)))
    assert exact_limits(alike, 0.95) == pytest.approx(exact_limits(of_images(units, 0), 0.95))


def test_units_of_unequal_size_count_less_than_they_are() -> None:
    uneven = Proportion(np.array([98.0, 1, 1]), np.array([98.0, 1, 1]))
    assert exact_limits(uneven, 0.95) == pytest.approx((1, 0.025 ** (9606 / 10000), 1))


def test_limits_of_f1_are_those_of_the_share_of_hits() -> None:
    low, high = clopper_pearson(6, 4, 0.95)
    limits = jaccard_to_f1(Limits(0.6, low, high))
    assert limits.value == pytest.approx(2 * 6 / (2 * 6 + 4))
    assert limits.low < limits.value < limits.high
    assert jaccard_to_f1(Limits(0, 0, 1)) == (0, 0, 1)


def test_the_distances_of_independent_parts_add_up_squared() -> None:
    parts = [Limits(0.9, 0.6, 1.0), Limits(0.5, 0.1, 0.6)]
    assert limits_of_mean(parts, shared=1) == pytest.approx((0.7, 0.45, 0.7 + 0.02**0.5 / 2))
    wide = limits_of_mean(parts, shared=2)
    assert wide.low == pytest.approx(0.7 - 0.25 * 2**0.5)
    assert limits_of_mean(parts, shared=9) == wide
    assert limits_of_mean(parts[:1], shared=9) == pytest.approx(parts[0])


def test_limits_of_a_mean_stay_in_range() -> None:
    assert limits_of_mean([Limits(0.1, 0, 1)] * 3, shared=3) == pytest.approx((0.1, 0, 1))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(9, 100)], True),
        ([(100, 9)], True),
        ([(10, 10)], False),
        ([(100, 4), (100, 50)], True),
        ([(100, 5), (100, 5)], False),
        ([(3, 0), *[(20, 20)] * 9], True),
        ([(3, 0), *[(20, 20)] * 10], False),
        ([(10, 0)] * 30, True),
        ([], False),
    ],
)
def test_few_units_are_few_beside_what_hangs_on_them(
    parts: list[tuple[int, int]], expected: bool
) -> None:
    assert is_scarce([of_images(*part) for part in parts]) is expected


def test_a_perfect_ranking_says_as_much_as_its_pairs() -> None:
    assert perfect_ranking_limits(1, 10, 0.95) == pytest.approx((1, 0.025**0.1, 1))
    assert perfect_ranking_limits(0, 10, 0.95) == pytest.approx((0, 0, 1 - 0.025**0.1))
    assert perfect_ranking_limits(1, 0, 0.95) is None
