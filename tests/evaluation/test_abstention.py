"""When a model should say nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.abstention import (
    apply_threshold,
    choose_threshold,
    risk_coverage,
    why_no_threshold,
)

answers = st.lists(
    st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]), st.booleans()),
    min_size=1,
    max_size=40,
)


def parted(rows: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])


@given(answers)
def test_the_curve_is_what_each_threshold_leaves(rows: list[tuple[float, bool]]) -> None:
    sure, right = parted(rows)
    curve = risk_coverage(sure, right)
    assert curve.threshold.tolist() == sorted(set(sure.double().tolist()), reverse=True)
    for threshold, coverage, risk in zip(
        curve.threshold.tolist(), curve.coverage.tolist(), curve.risk.tolist(), strict=True
    ):
        answered = sure.double() >= threshold
        assert coverage == pytest.approx(float(answered.double().mean()))
        assert risk == pytest.approx(float((~right[answered]).double().mean()))
    assert curve.coverage[-1] == 1
    assert 0 <= curve.area <= 1


@given(answers, st.one_of(st.none(), st.floats(0, 0.9)))
def test_a_threshold_keeps_the_error_and_leaves_out_the_fewest(
    rows: list[tuple[float, bool]], max_error: float | None
) -> None:
    sure, right = parted(rows)
    found = choose_threshold(sure, right, max_error=max_error)
    error = float((~right).double().mean())
    wanted = error / 2 if max_error is None else max_error
    if found is None:
        assert why_no_threshold(sure, right, max_error=max_error)
        return
    assert not why_no_threshold(sure, right, max_error=max_error)
    here = apply_threshold(sure, right, found.threshold)
    assert here == found
    assert found.error is not None
    assert found.error <= wanted + 1e-9
    assert found.coverage >= 0.5
    for other in np.unique(sure.double().numpy()):
        less = apply_threshold(sure, right, float(other))
        if less.coverage > found.coverage:
            assert less.error is not None
            assert less.error > wanted
    # Rounding in another runtime changes nothing.
    assert apply_threshold(sure - 1e-6, right, found.threshold).coverage == found.coverage


def test_reasons() -> None:
    sure = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert "no answer on validation is wrong" in why_no_threshold(
        sure, torch.ones(4, dtype=torch.bool), max_error=None
    )
    right = torch.tensor([True, True, True, False])
    assert "25.0% already" in why_no_threshold(sure, right, max_error=0.3)
    backwards = torch.tensor([False, True, True, True])
    assert "more than half" in why_no_threshold(sure, backwards, max_error=0.1)


def test_of_none_answered_nothing_is_said() -> None:
    found = apply_threshold(torch.tensor([0.5, 0.6]), torch.tensor([True, False]), 0.9)
    assert (found.coverage, found.error, found.error_without) == (0.0, None, 0.5)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="expected"):
        risk_coverage(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


def test_the_best_order_has_the_smallest_area() -> None:
    right = torch.tensor([True, True, True, False])
    sure = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert risk_coverage(sure, right).area < risk_coverage(-sure, right).area


@given(answers)
def test_the_curve_ends_with_the_plain_error_and_its_area_is_a_mean(
    rows: list[tuple[float, bool]],
) -> None:
    """The area is the mean, over the images, of the error where each is the last to be answered."""
    sure, right = parted(rows)
    curve = risk_coverage(sure, right)
    assert curve.risk[-1] == pytest.approx(float((~right).double().mean()))
    each = [float((~right[sure >= one]).double().mean()) for one in sure]
    assert curve.area == pytest.approx(np.mean(each))
    order = torch.randperm(len(sure), generator=torch.Generator().manual_seed(len(sure)))
    again = risk_coverage(sure[order], right[order])
    assert torch.equal(again.threshold, curve.threshold)
    assert again.area == pytest.approx(curve.area)


def test_no_threshold_parts_what_rounding_would_mix() -> None:
    """Two answers that differ by a bit of float32 are answered together, or left out."""
    near = float(np.nextafter(np.float32(0.6), np.float32(0)))
    sure = torch.tensor([0.9, 0.85, 0.8, 0.75, 0.6, near, 0.3])
    right = torch.tensor([True, True, True, True, True, False, False])
    found = choose_threshold(sure, right, max_error=0.0)
    assert found is not None
    assert 0.6 < found.threshold < 0.75
    assert found.coverage == pytest.approx(4 / 7)
    # Near 1, where the same logits give far less noise, less of a gap is enough.
    sure = torch.tensor([1 - 1e-6, 1 - 1e-6, 1 - 3e-6], dtype=torch.float64)
    found = choose_threshold(sure, torch.tensor([True, True, False]), max_error=0.0)
    assert found is not None
    assert found.threshold == pytest.approx(1 - 2e-6, abs=1e-9)


def test_a_threshold_is_a_probability_also_where_rounding_exceeds_one() -> None:
    sure = torch.tensor([1 + 1.2e-7, 1.0, 1.0, 0.4])
    right = torch.tensor([True, True, False, False])
    found = choose_threshold(sure, right, max_error=0.4)
    assert found is not None
    assert 0.4 < found.threshold <= 1
    assert choose_threshold(sure, right, max_error=0.1) is None
    assert "more than half" in why_no_threshold(sure, right, max_error=0.1)
