import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.exact_intervals import Exact, exact_intervals
from finetune.evaluation.metrics import classification_metrics
from finetune.evaluation.multilabel import multilabel_metrics
from finetune.evaluation.scores import class_aurocs
from finetune.models.answers import Task, as_hot

relaxed = settings(deadline=None, max_examples=100)


def find(
    probabilities: torch.Tensor, targets: torch.Tensor, task: Task, images_per_unit: int = 1
) -> Exact:
    areas = class_aurocs(probabilities, as_hot(targets, probabilities.shape[1]))
    return exact_intervals(
        probabilities,
        targets,
        areas=areas.double().numpy(),
        task=task,
        units=np.arange(len(targets)) // images_per_unit,
        level=0.95,
    )


@relaxed
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 8), st.booleans())
def test_the_values_in_the_middle_equal_the_metrics(
    seed: int, n: int, num_classes: int, is_multilabel: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(n, num_classes)))
    names = [str(index) for index in range(num_classes)]
    if is_multilabel:
        shares = rng.choice([0, 0.4, 1], num_classes)
        targets = torch.from_numpy(rng.random((n, num_classes)) < shares).float()
        found = find(logits.sigmoid(), targets, "multilabel")
        metrics = multilabel_metrics(logits.sigmoid(), targets, names)
    else:
        targets = torch.from_numpy(rng.integers(0, num_classes, n))
        logits[torch.arange(n), targets] += float(rng.choice([0, 3, 20]))
        found = find(logits.softmax(1), targets, "multiclass")
        metrics = classification_metrics(logits.softmax(1), targets, names)
    rows = zip(metrics.per_class, found.per_class, strict=True)
    for row, limits in ((metrics, found.overall), *rows):
        for name, (value, low, high) in limits.items():
            assert getattr(row, name) == pytest.approx(value), name
            assert 0 <= low <= value <= high <= 1
            assert low < high


def test_enough_images_need_no_exact_interval() -> None:
    labels = torch.arange(400) % 2
    numbers = torch.where(torch.arange(400) % 5 == 0, 1 - labels, labels)
    probabilities = torch.eye(2)[numbers].double()
    assert find(probabilities, labels, "multiclass") == ({}, [{}, {}])


def test_a_mistake_costs_two_classes_their_f1_and_any_labels_may_depend_on_each_other() -> None:
    labels = torch.arange(60) % 3
    perfect = torch.eye(3)[labels].double()
    low = 0.025 ** (1 / 20)
    f1 = 2 * low / (1 + low)
    found = find(perfect, labels, "multiclass").overall
    assert found["macro_recall"].low == pytest.approx(1 - (1 - low) / 3**0.5)
    assert found["macro_f1"].low == pytest.approx(1 - (1 - f1) * (2 / 3) ** 0.5)
    found = find(perfect, perfect.float(), "multilabel").overall
    assert found["macro_recall"].low == pytest.approx(low)
    assert found["macro_f1"].low == pytest.approx(f1)


def test_classes_that_share_units_may_be_wrong_together() -> None:
    labels = torch.arange(60) % 3
    perfect = torch.eye(3)[labels].double()
    low = 0.025 ** (1 / 20)
    found = find(perfect, labels, "multiclass", images_per_unit=3).overall
    assert found["balanced_accuracy"].low == pytest.approx(low)
    # Where each unit has images of one class, as many units count as before images did.
    of_one = labels.repeat_interleave(3)
    found = find(torch.eye(3)[of_one].double(), of_one, "multiclass", images_per_unit=3).overall
    assert found["balanced_accuracy"].low == pytest.approx(1 - (1 - low) / 3**0.5)


def test_a_mean_of_areas_needs_all_of_them_to_be_perfect() -> None:
    labels = torch.arange(60) % 3
    perfect = torch.eye(3)[labels].double()
    found = find(perfect, labels, "multiclass")
    assert found.overall["auroc"].low == pytest.approx(0.025 ** (1 / 20))
    blurred = perfect.clone()
    blurred[0] = torch.tensor([0.0, 1.0, 0.0])
    assert "auroc" not in find(blurred, labels, "multiclass").overall
