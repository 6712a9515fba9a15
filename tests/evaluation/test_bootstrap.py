import math

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import t as student

from finetune.evaluation.bootstrap import between_percentiles, of_calibration, on_log_odds, vary


def test_percentiles_reach_to_what_was_measured() -> None:
    values = np.append(np.arange(101.0), np.nan)
    for measured, expected in ((50, (5, 95)), (99, (5, 99)), (1, (1, 95))):
        assert between_percentiles(values, measured, 0.9) == pytest.approx(expected)


def test_log_odds_stay_between_0_and_1_and_are_even() -> None:
    values = np.append(0.98 + 0.02 * np.array([-1.0, 1.0] * 50), np.nan)
    ends = on_log_odds(values, 0.98, 0.95, units=10)
    assert ends is not None
    low, high = ends
    step = student.ppf(0.975, 9) * 0.02 * math.sqrt(10 / 9) / (0.98 * 0.02)
    assert 0 < low < 0.98 < high < 1
    assert logit(high) - logit(0.98) == pytest.approx(step)
    assert logit(0.98) - logit(low) == pytest.approx(step)
    fewer = on_log_odds(values, 0.98, 0.95, units=4)
    assert fewer is not None
    assert fewer[0] < low


def test_log_odds_need_two_units_and_an_inside() -> None:
    values = np.linspace(0.4, 0.6, 50)
    assert on_log_odds(values, 0.5, 0.95, units=1) is None
    assert on_log_odds(values, 0.0, 0.95, units=9) is None
    assert on_log_odds(values, 1.0, 0.95, units=9) is None


def test_a_calibration_error_loses_what_chance_makes() -> None:
    noise, values = np.linspace(0, 0.04, 101), np.linspace(0.1, 0.14, 101)
    assert of_calibration(values, 0.11, 0.9, noise=noise) == pytest.approx((0.072, 0.118))
    # All of the error may be chance.
    assert of_calibration(values, 0.03, 0.9, noise=noise)[0] == 0
    # Mirrored, the lower percentile would lie below what was measured.
    assert of_calibration(values, 0.09, 0.9, noise=noise)[1] == 0.09


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1] * 10, False),
        ([0.1, 0.1 + 1e-15] * 5, False),
        ([0.1, 0.2] * 5, True),
        ([np.nan, *[0.1, 0.2] * 9], True),
        ([np.nan, np.nan, *[0.1, 0.2] * 8], False),
        ([np.nan] * 4, False),
    ],
)
def test_scores_that_say_nothing_are_known(values: list[float], expected: bool) -> None:
    assert vary(np.array(values)) is expected
