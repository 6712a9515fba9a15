import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.training.losses import create_loss


@given(st.integers(2, 6), st.integers(1, 8), st.floats(0, 0.9), st.integers(0, 2**31))
def test_cross_entropy_spreads_the_target_over_all_classes(classes, batch, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, generator=generator)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    expected = 0.0
    for row, label in zip(logits.log_softmax(1).tolist(), labels.tolist(), strict=True):
        target = [smoothing / classes + (1 - smoothing) * (i == label) for i in range(classes)]
        expected -= sum(t * p for t, p in zip(target, row, strict=True)) / batch
    loss = create_loss("cross_entropy", label_smoothing=smoothing)(logits, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_model_that_knows_nothing_starts_at_the_logarithm_of_the_classes():
    loss = create_loss("cross_entropy", label_smoothing=0.1)
    assert loss(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))
