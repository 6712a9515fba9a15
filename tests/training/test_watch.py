import pytest
import torch

from finetune.training.watch import LossWatch


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_on_a_cpu_the_step_itself_is_named(bad):
    watch = LossWatch()
    answers = [watch.is_finite(torch.tensor(value)) for value in (0.5, 1e30, bad, 0.5, -2.0)]
    assert answers == [True, True, False, True, True]


def test_one_bad_value_among_many_is_enough():
    watch = LossWatch()
    losses = torch.zeros(3, 4)
    assert watch.is_finite(losses)
    losses[2, 1] = float("nan")
    assert not watch.is_finite(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_keeps_its_gradient_and_may_have_any_type(dtype):
    weight = torch.tensor([2.0], requires_grad=True)
    loss = (weight.to(dtype) ** 2).sum()
    answer = LossWatch().is_finite(loss)
    assert answer is True
    loss.backward()
    assert weight.grad.tolist() == [4.0]


def test_what_overflows_in_half_precision_is_seen():
    assert not LossWatch().is_finite(torch.tensor(70_000.0).to(torch.float16))
