"""Mistakes that look alike are found together, and right answers never."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation import failures
from finetune.evaluation.failures import FailureGroup, group_failures


def _two_planted():
    """Make 200 right answers of two classes; ten and six mistakes that stand close; four astray."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(4, 16, generator=generator)
    kinds = torch.tensor([0] * 100 + [1] * 100 + [2] * 10 + [3] * 6)
    spread = torch.tensor([1.0] * 200 + [0.1] * 16)
    features = centres[kinds] + spread.unsqueeze(1) * torch.randn(216, 16, generator=generator)
    astray = 6 * torch.randn(4, 16, generator=generator)
    features = torch.cat([features, astray]) + 20
    truths = torch.tensor([0] * 100 + [1] * 100 + [0] * 20)
    given = truths.clone()
    given[200:] = 1
    return features, truths, given


def test_two_planted_groups_are_found():
    features, truths, given = _two_planted()
    first, second = group_failures(features, truths, given)
    assert (first.truth, first.given, sorted(first.members)) == (0, 1, [*range(200, 210)])
    assert (second.truth, second.given, sorted(second.members)) == (0, 1, [*range(210, 216)])


def test_groups_of_another_kind_stay_apart():
    features, truths, given = _two_planted()
    given[205:210] = 2
    sizes = [(group.given, len(group.members)) for group in group_failures(features, truths, given)]
    assert sizes == [(1, 6), (1, 5), (2, 5)]


def test_the_most_central_comes_first():
    features, truths, given = _two_planted()
    centre = features[200:210].mean(0)
    features[207] = centre
    assert group_failures(features, truths, given)[0].members[0] == 207


def _cases(seed: int, count: int, classes: int):
    generator = torch.Generator().manual_seed(seed)
    truths, given = torch.randint(classes, (2, count), generator=generator)
    centres = torch.randn(5, 4, generator=generator)
    kinds = torch.randint(5, (count,), generator=generator)
    features = centres[kinds] + 0.2 * torch.randn(count, 4, generator=generator)
    return features, truths, given


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 60),
    classes=st.integers(1, 4),
    quantile=st.floats(0.01, 0.99),
)
@settings(max_examples=60)
def test_groups_are_mistakes_of_one_kind_each_once(seed, count, classes, quantile):
    features, truths, given = _cases(seed, count, classes)
    groups = group_failures(features, truths, given, quantile=quantile)
    members = [member for group in groups for member in group.members]
    assert len(set(members)) == len(members)
    for group in groups:
        assert len(group.members) >= 2
        assert group.truth != group.given
        assert {int(truths[member]) for member in group.members} == {group.truth}
        assert {int(given[member]) for member in group.members} == {group.given}
    keys = [(-len(group.members), group.truth, group.given) for group in groups]
    assert keys == sorted(keys)
    assert groups == group_failures(features, truths, given, quantile=quantile)
    # Neither the length of all features nor a shift of them matters.
    moved = group_failures(4 * features + 1, truths, given, quantile=quantile)
    assert {frozenset(group.members) for group in moved} == {
        frozenset(group.members) for group in groups
    }


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_a_larger_quantile_joins_what_a_smaller_one_did(seed):
    few, more = (group_failures(*_cases(seed, 80, 2), quantile=q) for q in (0.05, 0.4))
    for group in few:
        assert any(set(group.members) <= set(other.members) for other in more)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_that_are_all_the_same_do_not_crash(value):
    features = torch.full((6, 3), value)
    truths, given = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 1, 1, 1, 1, 1])
    assert group_failures(features, truths, given) == ()


def test_one_mistake_is_no_group():
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    truths = torch.tensor([0, 0, 1, 1])
    assert group_failures(features, truths, torch.tensor([0, 1, 1, 1])) == ()
    assert group_failures(features[:0], truths[:0], truths[:0]) == ()


def test_of_very_many_mistakes_the_first_are_grouped(monkeypatch):
    monkeypatch.setattr(failures, "MAX_MISTAKES", 12)
    monkeypatch.setattr(failures, "_MAX_SAMPLE", 60)
    features, truths, given = _two_planted()
    groups = group_failures(features, truths, given)
    assert [sorted(group.members) for group in groups] == [[*range(200, 210)], [210, 211]]
    assert isinstance(groups[0], FailureGroup)


def test_arguments_must_fit():
    with pytest.raises(ValueError, match=r"got \[2, 3\], \[2\] and \[3\]"):
        group_failures(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="quantile: got 1"):
        group_failures(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2), quantile=1)
