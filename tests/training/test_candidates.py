import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune.evaluation.epoch import training_metrics
from finetune.models.backbones import create_backbone
from finetune.models.classifier import Classifier
from finetune.training.candidates import best_of, score_states
from finetune.training.losses import image_losses

CPU = torch.device("cpu")
NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


def normalise(images):
    return images.float() / 128 - 1


def make_classifier(seed=0):
    torch.manual_seed(seed)
    classifier = Classifier(create_backbone("nano"), nn.Linear(192, 3))
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1.0, 0.3)
    return classifier.to(memory_format=torch.channels_last)


def state_of(classifier):
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def make_batches(task):
    """Nineteen images, the last batch smaller."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (19, 3, 32, 32), generator=generator, dtype=torch.uint8)
    if task == "multilabel":
        targets = torch.randint(0, 2, (19, 3), generator=generator).float()
    else:
        targets = torch.randint(0, 3, (19,), generator=generator)
    return list(zip(images.split(8), targets.split(8), strict=True))


@torch.no_grad()
def score_by_hand(classifier, batches, task):
    """Evaluate as a training does: all probabilities, then the figures."""
    classifier.eval()
    logits = torch.cat([classifier(normalise(images)) for images, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    metrics = training_metrics(3, task=task, names=NAMES)
    probabilities = logits.sigmoid() if task == "multilabel" else logits.softmax(1)
    values = {f"val_{name}": float(v) for name, v in metrics(probabilities, targets).items()}
    return {"val_loss": float(image_losses(logits, targets, task).mean()), **values}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_each_score_is_that_of_the_loaded_state(task):
    states = [state_of(make_classifier(seed)) for seed in (1, 2, 3)]
    batches = make_batches(task)
    expected = []
    for state in states:
        loaded = make_classifier()
        loaded.load_state_dict(state)
        expected.append(score_by_hand(loaded, batches, task))
    assert len({row["val_loss"] for row in expected}) == 3
    found = score_states(
        make_classifier(),
        states,
        batches,
        normalise=normalise,
        metrics=training_metrics(3, task=task, names=NAMES),
        task=task,
        device=CPU,
        dtype=torch.float32,
    )
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def score(classifier, states, batches, metrics=None, dtype=torch.float32):
    return score_states(
        classifier,
        states,
        batches,
        normalise=normalise,
        metrics=metrics or training_metrics(3, task="multiclass", names=NAMES),
        task="multiclass",
        device=CPU,
        dtype=dtype,
    )


def test_its_own_weights_and_the_states_stay_as_they_are():
    classifier = make_classifier()
    classifier.train()
    own, state = state_of(classifier), state_of(make_classifier(1))
    kept = {name: value.clone() for name, value in state.items()}
    metrics = training_metrics(3, task="multiclass", names=NAMES)
    score(classifier, [state], make_batches("multiclass"), metrics)
    for before, after in ((own, classifier.state_dict()), (kept, state)):
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(metric.update_count for metric in metrics.values())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_each_batch_is_loaded_once_for_all_states():
    loaded = []

    def batches():
        for batch in make_batches("multiclass"):
            loaded.append(batch)
            yield batch

    states = [state_of(make_classifier(seed)) for seed in (1, 2, 3)]
    assert len(score(make_classifier(), states, batches())) == 3
    assert len(loaded) == 3


def test_no_state_has_no_score():
    assert score(make_classifier(), [], make_batches("multiclass")) == []


def test_bfloat16_is_close_but_computed_otherwise():
    states = [state_of(make_classifier(1))]
    exact, rounded = (
        score(make_classifier(), states, make_batches("multiclass"), dtype=dtype)[0]["val_loss"]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


def row(value, loss=0.5):
    return {"val_accuracy": value, "val_loss": loss}


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ({"a": row(0.5), "b": row(0.7), "c": row(0.6)}, "max", "b"),
        ({"a": row(0.5), "b": row(0.7), "c": row(0.6)}, "min", "a"),
        ({"a": row(0.7, 0.4), "b": row(0.7, 0.3), "c": row(0.7, 0.5)}, "max", "b"),
        ({"a": row(0.7, 0.4), "b": row(0.7, 0.3)}, "min", "b"),  # a loss is always less is better
        ({"a": row(0.7), "b": row(0.7)}, "max", "a"),
        ({"a": row(math.nan), "b": row(0.0, 9.0)}, "max", "b"),
        ({"a": row(math.nan), "b": row(9.0, 9.0)}, "min", "b"),
        ({"a": row(0.7, math.nan), "b": row(0.7, 9.0)}, "max", "b"),
        ({"a": {"val_loss": 0.1}, "b": row(0.0, 9.0)}, "max", "b"),
        ({"a": row(math.nan, 0.5), "b": row(math.nan, 0.4)}, "max", "b"),
        ({"a": row(math.nan, math.nan), "b": row(math.nan, math.nan)}, "min", "a"),
    ],
)
def test_the_best_is_by_the_monitor_then_by_the_loss_then_the_first(values, mode, best):
    assert best_of(values, monitor="val_accuracy", mode=mode) == best


numbers = st.one_of(st.just(math.nan), st.integers(-3, 3).map(float))


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(numbers, numbers), min_size=1),
    st.sampled_from(["max", "min"]),
)
def test_nothing_is_better_than_the_best(pairs, mode):
    values = {name: row(value, loss) for name, (value, loss) in pairs.items()}
    best = best_of(values, monitor="val_accuracy", mode=mode)
    value, loss = pairs[best]
    for other, other_loss in pairs.values():
        if math.isnan(value):
            assert math.isnan(other)
        elif not math.isnan(other):
            assert other <= value if mode == "max" else other >= value
        is_equal = other == value or (math.isnan(other) and math.isnan(value))
        if is_equal and not math.isnan(other_loss):
            assert other_loss >= loss  # so a loss that is NaN is not chosen before one that is not
