"""What every export computes."""

import pytest
import torch
from torch import nn

from finetune.exports.bundle import load_model
from finetune.exports.deployed import Deployed, copy_of_classifier
from finetune.models.answers import to_probabilities

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])


class Fixed(nn.Module):
    def forward(self, images):
        assert images.dtype == torch.float16
        return LOGITS.to(images.dtype)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_rule_of_the_answers_in_float32(task, temperature):
    deployed = Deployed(nn.Identity(), Fixed(), task, temperature, torch.float16)
    answer = deployed(torch.zeros(2, 3, 4, 4))
    assert answer.dtype == torch.float32
    assert torch.equal(answer, to_probabilities(LOGITS, task, temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_copy_leaves_the_model_as_it_is(bundle_of, dtype):
    model = load_model(bundle_of("multiclass"))
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    copied = copy_of_classifier(model, dtype)
    assert {p.dtype for p in copied.parameters()} == {dtype}
    assert not copied.training
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    for name, value in model.classifier.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
