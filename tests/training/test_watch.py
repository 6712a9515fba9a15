import pytest
import torch

from finetune.training.watch import StepWatch


def test_on_a_cpu_the_numbers_are_those_of_the_step_itself():
    watch = StepWatch()
    for numbers in ([0.5, 1.0], [2.0**90, 0.0], [-2.0, 3.0]):
        assert watch.read(torch.tensor(numbers)) == numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_keeps_its_gradient_and_may_have_any_type(dtype):
    weight = torch.tensor([2.0], requires_grad=True)
    loss = weight.to(dtype) ** 2
    assert StepWatch().read(loss) == [4.0]
    loss.sum().backward()
    assert weight.grad.tolist() == [4.0]
