"""Which of several runs is the best, and what that is worth; of answers made up here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.commands.entrants import Entrant
from finetune.commands.ranking import choose_headline, compare_pair, correct, measures_of
from finetune.commands.verdict import explain, in_words, warn
from finetune.data.discover import Sample
from finetune.evaluation.report.comparison import Pair
from finetune.evaluation.report.content import Value
from finetune.exports.description import Description
from finetune.run import RunDirectory


def describe(task: str, num_classes: int) -> Description:
    return Description.model_validate(
        {
            "format_version": 1,
            "task": task,
            "class_names": [f"c{index}" for index in range(num_classes)],
            "backbone": {"name": "nano", "image_size_px": 32},
            "head": {"name": "linear", "arguments": {}},
            "preprocessing": {},
            "max_megapixels": 1,
            "weights_sha256": "0" * 64,
            "metrics": {},
            "versions": {},
            "command": "",
        }
    )


def entrant(name: str, probabilities: Tensor, targets: Tensor, **changes: Any) -> Entrant:
    groups = changes.get("groups") or [None] * len(targets)
    samples = [
        Sample(f"{index}.png", (str(label),), "val", group)
        for index, (label, group) in enumerate(zip(targets.tolist(), groups, strict=True))
    ]
    task = "multilabel" if targets.ndim == 2 else "multiclass"
    return Entrant(
        name=name,
        run=RunDirectory(Path("runs") / name),
        figures={"monitor": changes.get("monitor", "val_accuracy")},
        description=describe(task, probabilities.shape[1]),
        device=changes.get("device", "CPU"),
        root=Path(changes.get("root", "data")),
        samples=tuple(samples),
        probabilities=probabilities,
        targets=targets,
    )


def two(seed: int = 0, n: int = 120, **changes: Any) -> tuple[Entrant, Entrant]:
    """Return a good model and a poor one."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(size=(2, n, 3))
    logits[0, np.arange(n), truth] += 3
    logits[1, np.arange(n), truth] += 1
    good, poor = torch.tensor(logits).softmax(2)
    targets = torch.tensor(truth)
    return entrant("good", good, targets, **changes), entrant("poor", poor, targets, **changes)


@pytest.mark.parametrize("monitor", ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss"])
def test_the_best_leads_in_every_metric_that_may_rank(monitor: str) -> None:
    good, poor = two(monitor=f"val_{monitor}")
    headline = choose_headline([good, poor])
    assert headline.key == {"loss": "log_loss"}.get(monitor, monitor)
    assert headline.warning is None
    assert measures_of("multiclass", headline)[0] == headline.measure
    (pair,) = correct([compare_pair(good, poor, headline, 200)])
    lead = pair.advantage
    assert lead is not None
    assert lead.value is not None
    assert lead.low is not None
    assert lead.high is not None
    assert 0 < lead.low < lead.value < lead.high
    assert pair.standing == "worse"
    assert in_words(pair, headline.measure, "val", comparisons=1).startswith(
        "good is better than poor by "
    )
    # The other way round, it is as far behind.
    turned = compare_pair(poor, good, headline, 200)
    assert turned.advantage is not None
    assert turned.advantage.value == pytest.approx(-lead.value)
    assert (turned.only_best, turned.only_other) == (pair.only_other, pair.only_best)
    assert turned.p == pytest.approx(pair.p)


def test_several_labels_are_ranked_by_their_own_metrics() -> None:
    rng = np.random.default_rng(1)
    targets = torch.tensor(rng.random((80, 3)) < 0.4).float()
    good = (0.6 * targets + torch.tensor(rng.random((80, 3))) * 0.4).double()
    poor = torch.tensor(rng.random((80, 3)))
    for monitor, key in (("accuracy", "exact_match"), ("mean_average_precision",) * 2):
        a, b = (
            entrant(name, p, targets, monitor=f"val_{monitor}")
            for name, p in (("good", good), ("poor", poor))
        )
        headline = choose_headline([a, b])
        assert headline.key == key
        assert correct([compare_pair(a, b, headline, 200)])[0].standing == "worse"


def test_runs_that_were_chosen_differently_are_ranked_by_accuracy() -> None:
    good, _ = two(monitor="val_macro_f1")
    _, poor = two(monitor="val_loss")
    headline = choose_headline([good, poor])
    assert headline.key == "accuracy"
    assert headline.warning == (
        "The runs were chosen by log loss and macro f1, but are ranked by accuracy."
    )


def test_images_of_a_group_are_one_observation() -> None:
    headline = choose_headline(two())
    single = compare_pair(*two(n=60), headline, 500)
    grouped = compare_pair(*two(n=60, groups=[f"p{i // 20}" for i in range(60)]), headline, 500)
    assert (single.units, grouped.units) == (60, 3)
    assert single.p is not None
    assert grouped.p is not None
    assert single.p < 0.01
    assert grouped.p == 0.25  # of the eight ways to swap three groups, two are as extreme
    judged = correct([grouped])[0]
    text = in_words(judged, headline.measure, "val", comparisons=1)
    assert "on the same 60 images of 3 groups" in text
    assert "swapped at random in groups" in " ".join(
        explain(headline, [judged], resamples=500, threads=1, is_timed=False)
    )


def test_several_comparisons_are_corrected() -> None:
    pairs = [
        Pair("a", name, 50, 50, 5, 1, Value(0.1, 0.0, 0.2), p)
        for name, p in zip("bc", (0.03, 0.9), strict=True)
    ]
    corrected = correct([*pairs, Pair("a", "d", images=3)])
    assert [pair.p_corrected for pair in corrected] == [0.06, 0.9, None]
    assert [pair.standing for pair in corrected] == ["equal", "equal", "unknown"]


def test_the_leader_on_shared_images_is_named_first() -> None:
    measure = choose_headline(two()).measure
    behind = Pair("a", "b", 30, 30, 1, 9, Value(-0.25, -0.4, -0.1), 0.02)
    (pair,) = correct([behind])
    assert pair.standing == "unknown"
    assert in_words(pair, measure, "val", comparisons=1) == (
        "b is better than a by 25.0 points of accuracy (10.0 to 40.0) on the same 30 images, "
        "p = 0.020."
    )


def test_what_weakens_a_comparison_is_said() -> None:
    good, poor = two()
    headline = choose_headline([good, poor])
    pairs = [compare_pair(good, poor, headline, 100)]
    assert warn([good, poor], pairs, headline, "test") == ()
    (val,) = warn([good, poor], pairs, headline, "val")
    assert "chose each run's best epoch" in val
    _, elsewhere = two(device="NVIDIA H100")
    (devices,) = warn([good, elsewhere], pairs, headline, "test")
    assert "different devices (CPU and NVIDIA H100)" in devices
    _, other_data = two(root="other")
    (data,) = warn(
        [good, other_data], [compare_pair(good, other_data, headline, 100)], headline, "test"
    )
    assert "different images, in data and other" in data
