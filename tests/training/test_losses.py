import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune.training.losses import create_loss, image_losses

NAMES = ("cross_entropy", "bce", "focal")


def make_loss(task="multiclass", *, name="cross_entropy", smoothing=0.0, **settings):
    return create_loss(name, task=task, label_smoothing=smoothing, **settings)


batches = st.tuples(st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**31))


def make_batch(batch):
    classes, count, seed = batch
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return logits, labels, generator


@given(batches, st.floats(0, 0.9))
def test_cross_entropy_spreads_the_target_over_all_classes(batch, smoothing):
    logits, labels, _ = make_batch(batch)
    classes, count = logits.shape[1], len(logits)
    expected = 0.0
    for row, label in zip(logits.log_softmax(1).tolist(), labels.tolist(), strict=True):
        target = [smoothing / classes + (1 - smoothing) * (i == label) for i in range(classes)]
        expected -= sum(t * p for t, p in zip(target, row, strict=True)) / count
    loss = make_loss(smoothing=smoothing)(logits, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(batches, st.floats(0, 0.9), st.sampled_from(NAMES), st.booleans())
def test_classes_and_their_shares_cost_the_same_also_with_weights(
    batch, smoothing, name, has_priors
):
    logits, labels, generator = make_batch(batch)
    weights = torch.rand(logits.shape[1], generator=generator).tolist()
    shares = 0.01 + 0.9 * torch.rand(logits.shape[1], generator=generator)
    priors = shares.log().tolist() if has_priors else None
    loss = make_loss(name=name, smoothing=smoothing, class_weights=weights, log_priors=priors)
    shares = nn.functional.one_hot(labels, logits.shape[1]).float()
    assert loss(logits, labels).item() == pytest.approx(loss(logits, shares).item(), abs=1e-5)
    if smoothing == 0 and name == "cross_entropy" and not has_priors:
        each = nn.functional.cross_entropy(logits, labels, reduction="none")
        expected = (each * torch.tensor(weights)[labels]).mean().item()
        assert loss(logits, labels).item() == pytest.approx(expected, abs=1e-5)


def test_a_model_that_knows_nothing_starts_at_the_logarithm_of_the_classes():
    loss = make_loss(smoothing=0.1)
    assert loss(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_adjusted_in_training_alone(name):
    priors = [math.log(0.9), math.log(0.1)]
    added = [math.log(9), -math.log(9)] if name == "bce" else priors  # log-odds against the rest
    logits, labels = torch.tensor([[0.3, -0.2], [1.0, 2.0]]), torch.tensor([0, 1])
    loss, plain = make_loss(name=name, log_priors=priors), make_loss(name=name)
    assert loss(logits, labels).item() == pytest.approx(
        plain(logits + torch.tensor(added), labels).item()
    )
    assert loss.eval()(logits, labels).item() == plain(logits, labels).item()


@pytest.mark.parametrize("name", NAMES)
def test_what_learns_with_adjusted_logits_is_balanced(name):
    # Images tell nothing, nine in ten are of the first class: the best constant answer is the
    # shares themselves, and after the adjustment it is even.
    labels = torch.tensor([0] * 9 + [1])
    settings = {"name": name, "gamma": 0.0}  # else focal loss answers less surely than the shares
    reader = torch.sigmoid if name == "bce" else lambda logits: logits.softmax(0)
    for priors, expected in ((None, 0.9), ([math.log(0.9), math.log(0.1)], 0.5)):
        bias = nn.Parameter(torch.zeros(2))
        loss = make_loss(log_priors=priors, **settings)
        optimizer = torch.optim.SGD([bias], lr=1.0)
        for _ in range(200):
            optimizer.zero_grad()
            loss(bias.expand(10, 2), labels).backward()
            optimizer.step()
        assert reader(bias)[0].item() == pytest.approx(expected, abs=0.01)


@given(batches, st.floats(0, 0.9))
def test_binary_cross_entropy_is_the_mean_over_images_and_labels(batch, smoothing):
    logits, _, generator = make_batch(batch)
    targets = (torch.rand(logits.shape, generator=generator) < 0.5).float()
    weights = (0.1 + torch.rand(logits.shape[1], generator=generator)).tolist()
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        for x, y, weight in zip(row, target, weights, strict=True):
            smooth = y * (1 - smoothing) + smoothing / 2
            yes, no = -math.log(1 / (1 + math.exp(-x))), -math.log(1 / (1 + math.exp(x)))
            expected += (weight * smooth * yes + (1 - smooth) * no) / logits.numel()
    loss = make_loss("multilabel", smoothing=smoothing, class_weights=weights)
    assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(batches, st.floats(0, 0.9))
def test_one_versus_all_weighs_each_image_by_its_class(batch, smoothing):
    logits, labels, generator = make_batch(batch)
    classes, count = logits.shape[1], len(logits)
    weights = (0.1 + torch.rand(classes, generator=generator)).tolist()
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for index, x in enumerate(row):
            y = smoothing / classes + (1 - smoothing) * (index == label)
            yes, no = math.log(1 + math.exp(-x)), math.log(1 + math.exp(x))
            expected += weights[label] * (y * yes + (1 - y) * no) / (classes * count)
    loss = make_loss(name="bce", smoothing=smoothing, class_weights=weights)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(batches, st.floats(0, 5))
def test_focal_loss_is_scaled_by_the_miss(batch, gamma):
    logits, labels, _ = make_batch(batch)
    p = logits.double().softmax(1)[torch.arange(len(labels)), labels]
    expected = (-((1 - p) ** gamma) * p.log()).mean().item()
    loss = make_loss(name="focal", gamma=gamma)(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    hot = nn.functional.one_hot(labels, logits.shape[1]).float()
    p = logits.double().sigmoid()
    right = torch.where(hot > 0, p, 1 - p)
    expected = (-((1 - right) ** gamma) * right.log()).mean().item()
    loss = make_loss("multilabel", name="focal", gamma=gamma)(logits, hot)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(batches, st.floats(0, 0.9), st.booleans())
def test_focal_loss_without_gamma_is_the_plain_loss(batch, smoothing, is_mixed):
    logits, labels, generator = make_batch(batch)
    weights = torch.rand(logits.shape[1], generator=generator).tolist()
    settings = {"smoothing": smoothing, "class_weights": weights}
    shares = torch.rand(logits.shape, generator=generator).softmax(1)
    for task in ("multiclass", "multilabel"):
        targets = shares if is_mixed or task == "multilabel" else labels
        focal = make_loss(task, name="focal", gamma=0.0, **settings)(logits, targets)
        plain = make_loss(task, **settings)(logits, targets)
        assert focal.item() == pytest.approx(plain.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_focal_loss_of_a_sure_answer_has_a_finite_slope(task, gamma):
    logits = torch.tensor([[90.0, -90.0], [-90.0, 90.0]], requires_grad=True)
    loss = make_loss(task, name="focal", gamma=gamma)(logits, torch.tensor([[1.0, 0], [1, 0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].abs().max() > 0.1  # what is sure and wrong still learns


def test_for_several_labels_bce_is_what_cross_entropy_is():
    assert type(make_loss("multilabel", name="bce")) is type(make_loss("multilabel"))


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_one_image_have_no_shares(name):
    with pytest.raises(ValueError, match="log_priors"):
        make_loss("multilabel", name=name, log_priors=[0.0, -1.0])


def test_gamma_is_not_negative():
    with pytest.raises(ValueError, match=r"gamma: got -0\.1"):
        make_loss(name="focal", gamma=-0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_weights_move_with_the_module_and_stay_out_of_checkpoints(task, name):
    loss = make_loss(task, name=name, class_weights=[1.0, 2.0])
    assert [buffer.dtype for buffer in loss.double().buffers()] == [torch.float64]
    assert loss.state_dict() == {}


def test_the_loss_of_an_image_is_plain():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    labels = torch.tensor([1, 0])
    each = image_losses(logits, labels, "multiclass")
    assert each.tolist() == pytest.approx([3 + math.log(1 + math.exp(-3)), math.log(2)])
    targets = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    each = image_losses(logits, targets, "multilabel")
    assert each.shape == (2,)
    loss = make_loss("multilabel")
    assert each.mean().item() == pytest.approx(loss(logits, targets).item())
