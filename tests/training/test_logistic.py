"""The solver: the least of its loss, and several subsets as if each were alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from finetune.training.logistic import Logistic, principal_directions

TIGHT = 1e-7


def make_problem(seed, count=60, width=6, num_classes=3):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, width))
    classes = np.arange(count) % num_classes
    features = centres[classes] + rng.normal(size=(count, width)) * rng.uniform(0.5, 3, width)
    return torch.from_numpy(features).float(), torch.from_numpy(classes)


@pytest.mark.parametrize("strength", [0.1, 3.0, 100.0])
def test_the_least_is_scikit_learns_on_standardised_features(strength):
    features, classes = make_problem(0)
    solution = Logistic(features, classes, num_classes=3, task="multiclass").solve(
        strength, tolerance=TIGHT
    )
    inner = features.double()
    scaled = ((inner - inner.mean(0)) / inner.std(0, unbiased=False)).numpy()
    theirs = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000).fit(scaled, classes)
    ours = inner @ solution.weight[0].T + solution.bias[0]
    expected = theirs.decision_function(scaled)
    # Softmax does not see what is added to all logits alike.
    centred = ours - ours.mean(1, keepdim=True)
    np.testing.assert_allclose(centred, expected - expected.mean(1, keepdims=True), atol=2e-4)
    assert solution.gradient < 1e-5


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_subsets_are_solved_as_if_each_were_alone(seed):
    features, classes = make_problem(seed, count=45)
    held_out = torch.arange(45) % 3
    subsets = torch.stack([held_out != fold for fold in range(3)], dim=1)
    problem = Logistic(features, classes, num_classes=3, task="multiclass", subsets=subsets)
    together = problem.solve(5.0, tolerance=TIGHT)
    one = Logistic(
        features, classes, num_classes=3, task="multiclass", subsets=subsets[:, 1:2]
    ).solve(5.0, tolerance=TIGHT)
    torch.testing.assert_close(together.weight[1], one.weight[0], atol=1e-3, rtol=1e-2)
    losses = problem.losses(together)
    assert losses.shape == (45, 3)
    assert bool((losses >= 0).all())


def test_a_start_changes_the_way_and_not_the_end():
    features, classes = make_problem(1)
    problem = Logistic(features, classes, num_classes=3, task="multiclass")
    cold = problem.solve(1.0, tolerance=TIGHT)
    warm = problem.solve(1.0, tolerance=TIGHT, start=problem.solve(2.0, tolerance=TIGHT))
    torch.testing.assert_close(cold.weight, warm.weight, atol=1e-4, rtol=1e-3)


def test_directions_are_orthonormal_and_hold_the_variance():
    features, _ = make_problem(2)
    mean, std, variances, directions = principal_directions(features)
    torch.testing.assert_close(mean, features.double().mean(0).to(mean.dtype))
    identity = torch.eye(directions.shape[1], dtype=directions.dtype)
    torch.testing.assert_close(directions.T @ directions, identity, atol=1e-5, rtol=0)
    # Standardised features have a variance of one each.
    assert float(variances.sum()) == pytest.approx(features.shape[1], rel=1e-3)
    assert bool((std > 0).all())
