import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.models.answers import as_hot, confidence, decide, read_answers, to_probabilities

NAMES = ["ant", "bee", "wasp"]


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**31))
def test_one_class_is_the_most_probable(count, classes, seed):
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    probabilities = to_probabilities(logits, "multiclass")
    assert torch.allclose(probabilities.sum(1), torch.ones(count))
    given_ = decide(probabilities, "multiclass")
    assert given_.sum(1).tolist() == [1] * count
    assert torch.equal(probabilities[given_], probabilities.amax(1))
    assert torch.equal(confidence(probabilities, "multiclass"), probabilities.amax(1))


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**31))
def test_labels_given_are_the_most_probable_set(count, classes, seed):
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    probabilities = to_probabilities(logits, "multilabel")
    assert torch.allclose(probabilities, logits.sigmoid())
    given_ = decide(probabilities, "multilabel")
    sets = torch.cartesian_prod(*[torch.tensor([False, True])] * classes)
    for row, chosen, said in zip(
        probabilities, given_, confidence(probabilities, "multilabel"), strict=True
    ):
        joint = torch.where(sets, row, 1 - row).prod(1)
        assert joint.sum().item() == pytest.approx(1, abs=1e-4)
        assert said.item() == pytest.approx(joint.max().item())
        assert torch.equal(sets[joint.argmax()], chosen)


def test_answers_are_read_in_class_order():
    numbers = torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.2, 0.3]])
    many, none = read_answers(numbers, NAMES, "multilabel")
    assert many.labels == ("ant", "wasp")
    assert many.probability == pytest.approx(0.5 * 0.8 * 0.9)
    assert many.probabilities == pytest.approx((0.5, 0.2, 0.9))
    assert none.labels == ()
    (one,) = read_answers(torch.tensor([[0.2, 0.7, 0.1]]), NAMES, "multiclass")
    assert one.labels == ("bee",)
    assert one.probability == one.probabilities[1]


def test_both_kinds_of_targets_become_marks():
    expected = [[False, False, True], [True, False, False]]
    assert as_hot(torch.tensor([2, 0]), 3).tolist() == expected
    assert as_hot(torch.tensor(expected).float(), 3).tolist() == expected


def test_probabilities_are_float32_also_of_bfloat16():
    for task in ("multiclass", "multilabel"):
        assert to_probabilities(torch.zeros(1, 2).bfloat16(), task).dtype == torch.float32
