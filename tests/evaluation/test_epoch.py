import json
import os
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor, multiprocessing

from finetune.config import MetricName
from finetune.evaluation.epoch import METRICS, training_metrics
from finetune.evaluation.metrics import classification_metrics
from finetune.evaluation.multilabel import multilabel_metrics
from finetune.models.answers import Task

Case = tuple[Tensor, Tensor]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# A time limit per example fails on a busy machine.
relaxed = settings(deadline=None, max_examples=40)


@st.composite
def cases(draw: st.DrawFn, task: Task) -> Case:
    """Probabilities and targets, often with ties, and with classes that no or every image shows."""
    num_classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = torch.from_numpy(rng.integers(-3, 4, (n, num_classes)).astype(np.float64))
    if task == "multiclass":
        present = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, unique=True))
        return logits.softmax(1), torch.from_numpy(rng.choice(present, n))
    shares = draw(
        st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=num_classes, max_size=num_classes)
    )
    return logits.sigmoid(), torch.from_numpy(rng.random((n, num_classes)) < shares).float()


def compute(case: Case, task: Task, *, batch_size: int = 1000) -> dict[str, float]:
    collection = training_metrics(case[0].shape[1], task=task, names=METRICS)
    for start in range(0, len(case[0]), batch_size):
        collection.update(case[0][start : start + batch_size], case[1][start : start + batch_size])
    return {name: value.item() for name, value in collection.compute().items()}


def expect(probabilities: Floats, is_true: Bools, is_given: Bools, task: Task) -> dict[str, float]:
    """Ask scikit-learn, class by class."""
    present = [i for i in range(is_true.shape[1]) if is_true[:, i].any()]
    mixed = [i for i in present if not is_true[:, i].all()]
    is_binary = task == "multiclass" and is_true.shape[1] == 2

    def mean(score: str, classes: list[int], scores: npt.NDArray[np.generic] = is_given) -> float:
        values = [getattr(sk, score)(is_true[:, i], scores[:, i], **_zero(score)) for i in classes]
        return float(np.mean(values)) if values else np.nan

    recall, specificity = mean("recall_score", present), np.nan
    if mixed:
        specificity = np.mean(
            [sk.recall_score(~is_true[:, i], ~is_given[:, i], zero_division=0) for i in mixed]
        )
    sensitivity = recall
    if is_binary:
        sensitivity = mean("recall_score", [i for i in present if i == 1])
        specificity = mean("recall_score", [i for i in present if i == 0])
    return {
        "accuracy": sk.accuracy_score(is_true, is_given),
        "balanced_accuracy": recall if task == "multiclass" else (sensitivity + specificity) / 2,
        "macro_f1": mean("f1_score", present),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": mean("roc_auc_score", mixed, probabilities),
        "mean_average_precision": mean("average_precision_score", mixed, probabilities),
    }


def _zero(score: str) -> dict[str, int]:
    return {"zero_division": 0} if score in ("recall_score", "f1_score") else {}


def test_every_metric_of_the_config_is_there() -> None:
    assert set(METRICS) == set(get_args(MetricName))
    with pytest.raises(ValueError, match=r"\['recal'\].*accuracy"):
        training_metrics(2, task="multiclass", names=["accuracy", "recal"])


@relaxed
@given(cases("multiclass"), st.integers(1, 9))
def test_multiclass_equals_scikit_learn_and_the_evaluation(case: Case, batch_size: int) -> None:
    probabilities, labels = case
    every = np.arange(probabilities.shape[1])
    is_true = labels.numpy()[:, None] == every
    is_given = probabilities.numpy().argmax(1)[:, None] == every
    got = compute(case, "multiclass", batch_size=batch_size)
    expected = expect(probabilities.numpy(), is_true, is_given, "multiclass")
    assert got == pytest.approx(expected, abs=1e-6, nan_ok=True)
    whole = classification_metrics(*case, [str(index) for index in every])
    for name in METRICS:
        if name in ("sensitivity", "specificity") and len(every) > 2:
            continue  # means over the classes in training, not reported by the evaluation
        value = getattr(whole, name)
        assert got[name] == pytest.approx(np.nan if value is None else value, nan_ok=True)


@relaxed
@given(cases("multilabel"), st.integers(1, 9))
def test_multilabel_equals_scikit_learn_and_the_evaluation(case: Case, batch_size: int) -> None:
    probabilities, targets = case[0].numpy(), case[1].numpy() > 0
    got = compute(case, "multilabel", batch_size=batch_size)
    expected = expect(probabilities, targets, probabilities >= 0.5, "multilabel")
    assert got == pytest.approx(expected, abs=1e-6, nan_ok=True)
    whole = multilabel_metrics(*case, [str(index) for index in range(targets.shape[1])])
    assert got["accuracy"] == pytest.approx(whole.exact_match)
    for name in ("macro_f1", "auroc", "mean_average_precision"):
        value = getattr(whole, name)
        assert got[name] == pytest.approx(np.nan if value is None else value, nan_ok=True)


def test_a_perfect_model_is_perfect_although_a_class_is_absent() -> None:
    labels = torch.tensor([0, 0, 2, 2])
    assert set(compute((torch.eye(3)[labels], labels), "multiclass").values()) == {1}


def test_metrics_start_anew_after_reset_and_take_a_prefix() -> None:
    collection = training_metrics(3, task="multiclass", names=METRICS).clone(prefix="val_")
    for labels in (torch.tensor([1, 2, 0]), torch.arange(3)):
        collection.reset()
        collection.update(torch.eye(3), labels)
        values = {name: value.item() for name, value in collection.compute().items()}
    assert values == {f"val_{name}": 1 for name in METRICS}


def test_each_batch_is_counted_once_and_kept_once() -> None:
    collection = training_metrics(3, task="multiclass", names=METRICS)
    for _ in range(2):
        collection.update(torch.eye(3), torch.arange(3))
    groups = sorted(sorted(group) for group in collection.compute_groups.values())
    assert groups == [
        ["accuracy", "balanced_accuracy", "macro_f1", "sensitivity", "specificity"],
        ["auroc", "mean_average_precision"],
    ]


SHARED = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1])


def _count_in_process(rank: int, folder: str, ends: tuple[int, int]) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    collection = training_metrics(3, task="multiclass", names=METRICS)
    start, end = (0, ends[0]) if rank == 0 else ends
    for index in range(start, end):
        collection.update(SHARED[index : index + 1], LABELS[index : index + 1])
    with warnings.catch_warnings():
        # A process without images has never updated.
        warnings.filterwarnings("ignore", message=r".*called before the ``update`` method")
        values = {name: value.item() for name, value in collection.compute().items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test's processes are forked")
@pytest.mark.parametrize("ends", [(3, 7), (7, 7)], ids=["unequal shares", "one without images"])
def test_metrics_are_of_all_processes_together(tmp_path: Path, ends: tuple[int, int]) -> None:
    multiprocessing.start_processes(
        _count_in_process, (str(tmp_path), ends), nprocs=2, start_method="fork"
    )
    expected = compute((SHARED, LABELS), "multiclass")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected)
