"""Temperature scaling."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from finetune.evaluation import temperature as temperature_module
from finetune.evaluation.temperature import (
    FEWEST_IMAGES,
    HIGHEST,
    LOWEST,
    calibrate,
    fit_temperature,
    fold_places,
)
from finetune.models.answers import Task, decide, to_probabilities


def sampled(
    images: int, classes: int, temperature: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose probabilities hold once they are divided by the temperature."""
    rng = np.random.default_rng(seed)
    true = torch.from_numpy(rng.normal(0, 2, (images, classes)))
    chosen = [rng.choice(classes, p=row) for row in true.softmax(1).numpy()]
    return (true * temperature).float(), torch.tensor(chosen)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    logits, targets = sampled(4000, 4, temperature)
    assert fit_temperature(logits, targets, "multiclass") == pytest.approx(temperature, rel=0.08)


def test_the_temperature_of_several_labels_is_found() -> None:
    rng = np.random.default_rng(0)
    true = torch.from_numpy(rng.normal(0, 2, (3000, 3)))
    targets = torch.from_numpy((rng.random((3000, 3)) < true.sigmoid().numpy()).astype(np.float32))
    assert fit_temperature(true * 3, targets, "multilabel") == pytest.approx(3, rel=0.1)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.3, 4))
def test_no_other_temperature_has_a_smaller_loss(seed: int, temperature: float) -> None:
    logits, targets = sampled(80, 3, temperature, seed)
    found = fit_temperature(logits, targets, "multiclass")
    best = functional.cross_entropy(logits.double() / found, targets)
    for factor in (0.9, 0.98, 1.02, 1.1):
        other = min(max(found * factor, 0.05), 20)
        assert functional.cross_entropy(logits.double() / other, targets) >= best - 1e-6


def test_other_images_gain() -> None:
    logits, targets = sampled(1500, 5, 3.0)
    found = calibrate(logits, targets, task="multiclass")
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.log_loss_before is not None
    assert found.log_loss_after is not None
    assert found.ece_before is not None
    assert found.ece_after is not None
    assert found.log_loss_after < found.log_loss_before - 0.1
    assert found.ece_after < found.ece_before / 3
    assert "too sure" in found.reason
    fresh, truth = sampled(1500, 5, 3.0, seed=1)
    assert functional.cross_entropy(fresh / found.temperature, truth) < functional.cross_entropy(
        fresh, truth
    )


def test_probabilities_that_hold_are_left_alone_or_nearly() -> None:
    logits, targets = sampled(3000, 3, 1.0)
    assert calibrate(logits, targets, task="multiclass").temperature == pytest.approx(1, abs=0.06)


def test_what_does_not_help_other_images_is_not_used() -> None:
    """Noise: what fits four fifths does not fit the last one."""
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 1e-3, (60, 2)))
    targets = torch.from_numpy(rng.integers(0, 2, 60))
    found = calibrate(logits, targets, task="multiclass")
    assert (found.temperature, found.log_loss_after, found.ece_after) == (1.0, None, None)
    assert "stays 1" in found.reason
    assert "no gain" in found.reason
    before, after = (float(word.rstrip(",")) for word in found.reason.split() if "0.6" in word)
    assert before == pytest.approx(found.log_loss_before, abs=1e-4)
    assert after > before


def test_a_gain_that_may_be_chance_is_not_used() -> None:
    """Of 40 models that are calibrated, a fifth would gain by chance alone; few are changed."""
    found = [calibrate(*sampled(300, 3, 1.0, seed), task="multiclass") for seed in range(40)]
    assert sum(one.temperature != 1 for one in found) <= 4
    assert any("may be chance" in one.reason for one in found)


def test_the_same_images_again_and_again_are_no_more_sure() -> None:
    """Copies of an image, as a group, count as one: its gain is as much chance as before."""
    logits, targets = sampled(150, 3, 1.2, seed=0)
    rows = torch.arange(150).repeat_interleave(20)
    groups = [str(row) for row in rows.tolist()]
    alone = calibrate(logits[rows], targets[rows], task="multiclass")
    grouped = calibrate(logits[rows], targets[rows], task="multiclass", groups=groups)
    assert alone.temperature != 1
    assert "may be chance" in grouped.reason


def test_no_number_of_right_answers_makes_a_model_certain() -> None:
    """One mistake more is made up: 200 right answers are as good as 199 of 200 or so."""
    targets = torch.arange(200) % 2
    logits = functional.one_hot(targets, 2).double() * 3
    found = calibrate(logits, targets, task="multiclass")
    assert found.temperature < 1
    sure = float((logits / found.temperature).softmax(1).amax(1).mean())
    assert sure == pytest.approx(201 / 202, abs=1e-4)
    assert "a made-up mistake" in found.reason


def test_few_mistakes_make_a_model_surer_that_was_not_sure_enough() -> None:
    """What label smoothing leaves: nearly all right, and never sure."""
    logits, targets = sampled(360, 10, 0.4)
    keep = torch.cat([(logits.argmax(1) == targets).nonzero().flatten(), torch.arange(3)])
    found = calibrate(logits[keep], targets[keep], task="multiclass")
    assert found.temperature < 0.6
    assert found.ece_after is not None
    assert found.ece_before is not None
    assert found.ece_after < found.ece_before / 2


def test_made_up_mistakes_of_several_labels_are_pairs() -> None:
    targets = (torch.arange(300).reshape(100, 3) % 2).float()
    logits = (targets * 2 - 1) * 3
    assert fit_temperature(logits, targets, "multilabel") < 0.1
    fitted = fit_temperature(logits, targets, "multilabel", made_up_mistakes=1)
    assert float((3 / torch.tensor(fitted)).sigmoid()) == pytest.approx(301 / 302, abs=1e-4)


def test_too_few_images_are_said_to_be() -> None:
    logits, targets = sampled(FEWEST_IMAGES - 1, 3, 3.0)
    found = calibrate(logits, targets, task="multiclass")
    assert (found.temperature, found.ece_before) == (1.0, None)
    assert "49 validation images are fewer than 50" in found.reason
    one = calibrate(*sampled(60, 3, 3.0), task="multiclass", groups=["a"] * 60)
    assert one.temperature == 1
    assert "one group" in one.reason


def test_what_is_reported_is_of_images_that_were_not_fitted_to() -> None:
    """Groups disagree: within one, a temperature fits; the others need another."""
    logits, targets = sampled(600, 4, 1.0)
    factors = torch.tensor([0.3, 3.0]).repeat_interleave(300)
    groups = ["a"] * 300 + ["b"] * 300
    found = calibrate(logits * factors[:, None], targets, task="multiclass", groups=groups)
    assert (found.temperature, found.log_loss_after) == (1.0, None)
    mixed = calibrate(logits * factors[:, None], targets, task="multiclass")
    assert mixed.temperature != 1


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.2, 5), st.sampled_from(["multiclass", "multilabel"]))
def test_no_answer_changes_and_twice_gives_the_same(seed: int, factor: float, task: Task) -> None:
    logits, targets = sampled(120, 4, factor, seed)
    if task == "multilabel":
        targets = functional.one_hot(targets, 4).float()
    found = calibrate(logits, targets, task=task, seed=seed)
    assert found == calibrate(logits, targets, task=task, seed=seed)
    assert LOWEST <= found.temperature <= HIGHEST
    assert (found.temperature == 1) == (found.log_loss_after is None)
    before, after = (
        decide(to_probabilities(logits, task, temperature), task)
        for temperature in (1.0, found.temperature)
    )
    assert torch.equal(before, after)
    if found.log_loss_after is not None:
        assert found.log_loss_before is not None
        assert found.log_loss_after < found.log_loss_before


@given(
    st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=2, max_size=40),
    st.integers(0, 100),
)
def test_folds_keep_groups_whole(groups: list[str | None], seed: int) -> None:
    places = fold_places(len(groups), groups, seed=seed, folds=5)
    units = len({name for name in groups if name}) + groups.count(None)
    if units < 2:
        assert places is None
        return
    assert places is not None
    assert set(places) == set(range(min(5, units)))
    for name in set(groups) - {None}:
        assert (
            len({place for place, group in zip(places, groups, strict=True) if group == name}) == 1
        )


def test_of_many_logits_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order."""
    sizes, measure = set(), temperature_module._losses

    def count(logits: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        sizes.add(logits.numel())
        return measure(logits, *others, **more)

    monkeypatch.setattr(temperature_module, "_losses", count)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10_000, 300, generator=generator) * 3
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    for rows in (slice(None), targets.argsort(stable=True)):
        found = fit_temperature(logits[rows] * 2, targets[rows], "multiclass")
        assert found == pytest.approx(2, rel=0.03)
    assert sizes == {999_900}
