import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from finetune.training import probe
from finetune.training.losses import create_loss
from finetune.training.probe import fit_probe, out_of_fold_probabilities


def make_images(*, count=120, width=8, classes=3, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=generator)
    scales = torch.logspace(-2, 2, width)
    noise = torch.randn(count, width, generator=generator)
    return (centres[targets] + spread * noise) * scales + 3 * scales, targets


def fit(features, targets, *, num_classes=3, task="multiclass", seed=0, **settings):
    return fit_probe(features, targets, num_classes=num_classes, task=task, seed=seed, **settings)


def standardise(features):
    return (features - features.mean(0)) / features.std(0, correction=0)


def logits_of(fitted, features):
    return features.double() @ fitted.weight.double().T + fitted.bias.double()


@pytest.mark.parametrize("strength", [0.1, 10.0])
@pytest.mark.parametrize("width", [8, 200])
def test_it_agrees_with_scikit_learn(strength, width):
    features, targets = make_images(width=width)
    fitted = fit(features, targets, strengths=[strength])
    scaled = standardise(features.double()).numpy()
    theirs = LogisticRegression(C=1 / strength, tol=1e-9, max_iter=5000)
    expected = theirs.fit(scaled, targets.numpy()).predict_log_proba(scaled)
    ours = logits_of(fitted, features).log_softmax(1).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-3)
    assert fitted.is_converged
    assert fitted.weight.dtype == fitted.bias.dtype == torch.float32
    assert (fitted.curve, fitted.folds, fitted.strength) == ((), 0, strength)


def test_each_label_is_a_regression_of_its_own():
    features, classes = make_images()
    targets = functional.one_hot(classes, 3).float()
    targets[:20, 2] = 1
    fitted = fit(features, targets, task="multilabel", strengths=[3.0])
    scaled = standardise(features.double()).numpy()
    for label in range(3):
        theirs = LogisticRegression(C=1 / 3, tol=1e-9, max_iter=5000)
        expected = theirs.fit(scaled, targets[:, label].numpy()).decision_function(scaled)
        np.testing.assert_allclose(logits_of(fitted, features)[:, label], expected, atol=2e-3)


@given(
    task=st.sampled_from(["multiclass", "multilabel"]),
    strength=st.sampled_from([0.01, 1.0, 100.0]),
    count=st.integers(6, 40),
    width=st.integers(1, 60),
    seed=st.integers(0, 1000),
    is_adjusted=st.booleans(),
)
@settings(max_examples=15)
def test_nothing_is_gained_by_a_step_in_any_direction(
    task, strength, count, width, seed, is_adjusted
):
    features, classes = make_images(count=count, width=width, seed=seed)
    is_multilabel = task == "multilabel"
    targets = functional.one_hot(classes, 3).float() if is_multilabel else classes
    weights = [0.5, 1.0, 3.0]
    priors = None if is_multilabel or not is_adjusted else [-1.0, -2.0, -0.5]
    balance = {"class_weights": weights, "log_priors": priors}
    fitted = fit(features, targets, task=task, strengths=[strength], **balance)
    assert fitted.is_converged
    std = features.std(0, correction=0).double()
    weight = (fitted.weight.double() * std).requires_grad_()
    bias = (fitted.bias.double() + fitted.weight.double() @ features.double().mean(0)).detach()
    bias.requires_grad_()
    loss = create_loss("cross_entropy", task=task, label_smoothing=0, **balance).double()
    mean = loss(
        standardise(features.double()) @ weight.T + bias,
        targets.double() if is_multilabel else targets,
    )
    labels = 3 if is_multilabel else 1
    (mean * labels + strength / 2 / count * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4


def test_the_strength_is_the_best_of_the_curve_and_noise_wants_a_strong_one():
    features, targets = make_images(width=40, spread=0.7)
    fitted = fit(features, targets)
    losses = dict(fitted.curve)
    assert list(losses) == sorted(losses, reverse=True)
    assert fitted.strength == min(losses, key=losses.get)
    assert fitted.folds == 5
    assert losses[fitted.strength] < math.log(3)
    noise = fit(torch.randn(120, 40, generator=torch.Generator().manual_seed(1)), targets)
    assert noise.strength > fitted.strength


def test_the_same_arguments_give_the_same_bits():
    features, targets = make_images()
    one, two = fit(features, targets), fit(features, targets)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert one.curve == two.curve


@given(
    groups=st.lists(st.integers(0, 8), min_size=2, max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_no_group_is_parted_and_every_class_is_learned(groups, folds, seed):
    targets = torch.arange(len(groups)) % 3
    held_out = probe._hold_out(targets, groups, folds, seed)
    assert held_out.sum(1).max(initial=0) <= 1
    assert held_out.any(0).all()
    for column in held_out.T:
        inside = {group for group, is_out in zip(groups, column, strict=True) if is_out}
        outside = {group for group, is_out in zip(groups, column, strict=True) if not is_out}
        assert not inside & outside
        assert set(targets[~column].tolist()) == set(targets.tolist())


def test_folds_beyond_enough_images_are_left_out(monkeypatch):
    monkeypatch.setattr(probe, "ENOUGH_HELD_OUT", 50)
    features, targets = make_images()
    assert fit(features, targets).folds == 3


def test_the_sweep_sees_each_class_in_its_share(monkeypatch):
    monkeypatch.setattr(probe, "MAX_SWEEP_IMAGES", 40)
    targets = torch.tensor([0] * 300 + [1] * 100)
    chosen = probe._choose_images(targets, 2, seed=0)
    assert chosen == sorted(set(chosen))
    assert torch.bincount(targets[chosen]).tolist() == [30, 10]
    assert chosen != probe._choose_images(targets, 2, seed=1)
    features = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    hot = functional.one_hot(targets, 2).float()
    assert fit(features, hot, num_classes=2, task="multilabel").is_converged


@given(
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    task=st.sampled_from(["multiclass", "multilabel"]),
    width=st.integers(1, 5),
)
@settings(max_examples=15)
def test_few_images_and_rare_classes_do_not_crash(classes, task, width):
    generator = torch.Generator().manual_seed(len(classes))
    features = torch.randn(len(classes), width, generator=generator)
    targets = torch.tensor(classes)
    if task == "multilabel":
        targets = functional.one_hot(targets, 4).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(features, targets, num_classes=4, task=task)
    assert fitted.is_converged
    assert fitted.weight.isfinite().all()
    assert fitted.bias.isfinite().all()
    probabilities = logits_of(fitted, features).softmax(1)
    absent = [name for name in range(4) if name not in classes]
    assert not fitted.weight[absent].any()
    if absent and task == "multiclass":
        present = probabilities[:, sorted(set(classes))].mean()
        assert probabilities[:, absent].mean() <= present


def test_a_label_that_none_or_all_show_is_a_constant():
    features, classes = make_images(count=60)
    targets = torch.stack([torch.zeros(60), torch.ones(60), (classes == 0).float()], 1)
    fitted = fit(features, targets, task="multilabel")
    assert not fitted.weight[:2].any()
    assert fitted.weight[2].any()
    assert fitted.bias[:2].tolist() == pytest.approx([-math.log(61), math.log(61)])


def test_separable_images_converge_to_all_right():
    features, targets = make_images(spread=0.01)
    fitted = fit(features, targets)
    assert fitted.is_converged
    assert torch.equal(logits_of(fitted, features).argmax(1), targets)


def test_constant_features_say_nothing():
    features, targets = make_images()
    constant = torch.full((120, 2), 0.1)
    plain = fit(features, targets, strengths=[1.0])
    wider = fit(torch.cat([features, constant], 1), targets, strengths=[1.0])
    assert wider.weight[:, -2:].abs().max() < 1e-6
    torch.testing.assert_close(
        logits_of(wider, features.new_tensor(torch.cat([features, constant], 1).tolist())),
        logits_of(plain, features),
        atol=1e-3,
        rtol=1e-3,
    )
    only = fit(constant, targets)
    shares = logits_of(only, constant).softmax(1)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 3), atol=1e-4, rtol=0)


def test_priors_make_what_tells_nothing_even():
    targets = torch.tensor([0] * 90 + [1] * 10)
    features = torch.ones(100, 2)
    for priors, expected in ((None, 0.9), ([math.log(0.9), math.log(0.1)], 0.5)):
        fitted = fit(features, targets, num_classes=2, log_priors=priors, strengths=[1.0])
        assert logits_of(fitted, features).softmax(1)[0, 0].item() == pytest.approx(
            expected, abs=1e-4
        )


def test_groups_must_be_of_all_images():
    features, targets = make_images()
    with pytest.raises(ValueError, match="groups: got 2 of 120 images"):
        fit(features, targets, groups=[0, 1])
    with pytest.raises(ValueError, match="groups: got 2 of 120 images"):
        out_of_fold(features, targets, groups=[0, 1])


def out_of_fold(features, targets, *, num_classes=3, task="multiclass", strength=10.0, **settings):
    return out_of_fold_probabilities(
        features, targets, num_classes=num_classes, task=task, strength=strength, seed=0, **settings
    )


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_each_fold_is_what_scikit_learn_says_without_it(strength, task):
    features, targets = make_images(count=150, width=20, spread=1.5)
    groups = [index // 2 for index in range(150)]
    scaled = standardise(features.double()).numpy()
    folds = probe._deal(targets, groups, 5, 0).T
    assert sorted(fold.sum() for fold in folds) == [30] * 5
    hot = functional.one_hot(targets, 3).float()
    is_multilabel = task == "multilabel"
    ours = out_of_fold(
        features, hot if is_multilabel else targets, task=task, strength=strength, groups=groups
    )
    for fold in folds:
        theirs = LogisticRegression(C=1 / strength, tol=1e-9, max_iter=5000)
        if is_multilabel:
            expected = [
                theirs.fit(scaled[~fold], hot[~fold, label]).predict_proba(scaled[fold])[:, 1]
                for label in range(3)
            ]
        else:
            expected = theirs.fit(scaled[~fold], targets[~fold]).predict_proba(scaled[fold]).T
        np.testing.assert_allclose(ours[fold].T, expected, atol=2e-3)


@given(
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    group=st.integers(1, 4),
    task=st.sampled_from(["multiclass", "multilabel"]),
    folds=st.integers(2, 6),
)
@settings(max_examples=25)
def test_every_image_that_can_be_held_out_gets_probabilities(classes, group, task, folds):
    features = torch.randn(len(classes), 3, generator=torch.Generator().manual_seed(len(classes)))
    targets = torch.tensor(classes)
    groups = [index // group for index in range(len(classes))]
    # A class that is in one group alone cannot be learned without it.
    homes = {
        name: {g for c, g in zip(classes, groups, strict=True) if c == name} for name in classes
    }
    kept = {g for home in homes.values() if len(home) == 1 for g in home}
    if task == "multilabel":
        targets = functional.one_hot(targets, 4).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = out_of_fold(features, targets, num_classes=4, task=task, groups=groups, folds=folds)
    assert given.shape == (len(classes), 4)
    assert given.dtype == torch.float32
    is_known = given.isfinite().all(1)
    assert torch.equal(is_known, ~given.isnan().any(1))
    assert not any(known for known, g in zip(is_known.tolist(), groups, strict=True) if g in kept)
    assert ((given[is_known] >= 0) & (given[is_known] <= 1)).all()
    if task == "multiclass":
        torch.testing.assert_close(given[is_known].sum(1), torch.ones(int(is_known.sum())))


def test_the_own_label_says_nothing_about_an_image():
    features, targets = make_images(count=90, spread=0.3)
    turned = targets.clone()
    turned[:6] = (targets[:6] + 1) % 3
    given = out_of_fold(features, turned, strength=1.0)
    assert torch.equal(given[:6].argmax(1), targets[:6])
    # Two copies of an image in different groups tell each other's label; in one group they do not.
    twins = torch.cat([features, features[:1]])
    labels = torch.cat([targets, (targets[:1] + 1) % 3])
    apart = out_of_fold(twins, labels, strength=1e-3, groups=[*range(91)])
    together = out_of_fold(twins, labels, strength=1e-3, groups=[*range(90), 0])
    assert together[0].argmax() == together[90].argmax() == targets[0]
    assert apart[0, targets[0]] < together[0, targets[0]]


def test_weights_and_priors_reach_the_folds():
    targets = torch.tensor([0] * 90 + [1] * 10)
    features = torch.ones(100, 2)
    plain = out_of_fold(features, targets, num_classes=2)
    even = out_of_fold(features, targets, num_classes=2, log_priors=[math.log(0.9), math.log(0.1)])
    weighed = out_of_fold(features, targets, num_classes=2, class_weights=[1.0, 9.0])
    assert plain[:, 0].tolist() == pytest.approx([0.9] * 100, abs=0.01)
    assert even[:, 0].tolist() == pytest.approx([0.5] * 100, abs=0.05)
    assert weighed[:, 0].tolist() == pytest.approx([0.5] * 100, abs=0.05)


def test_no_fold_is_left_out(monkeypatch):
    monkeypatch.setattr(probe, "ENOUGH_HELD_OUT", 10)
    features, targets = make_images()
    assert out_of_fold(features, targets).isfinite().all()
