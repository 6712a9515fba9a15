"""Planted label errors are found, clean labels are left alone, and nothing crashes."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.label_issues import (
    LabelIssue,
    find_label_issues,
    find_multilabel_issues,
)


def _cases(*, seed: int, count: int, classes: int):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits.softmax(1), torch.randint(classes, (count,), generator=generator)


def _places(issue: LabelIssue) -> tuple[int, int, int]:
    return issue.index, issue.given, issue.suggested


def _by_hand(probabilities, labels):
    """Follow the rule image by image, in plain Python."""
    rows, given = probabilities.double().tolist(), labels.tolist()

    def own(index):
        return rows[index][given[index]]

    images = {j: [index for index, label in enumerate(given) if label == j] for j in set(given)}
    thresholds = {j: sum(rows[index][j] for index in images[j]) / len(images[j]) for j in images}
    confident, wrong = Counter(), Counter()
    for row, label in zip(rows, given, strict=True):
        reached = [j for j in sorted(images) if row[j] >= thresholds[j] - 1e-9]
        if reached:
            confident[label] += 1
            wrong[label] += max(reached, key=lambda j: row[j]) != label
    count = sum(wrong[j] / confident[j] * len(images[j]) for j in sorted(confident))
    best = [max(sorted(images), key=lambda j: row[j]) for row in rows]
    suspects = [index for index in range(len(rows)) if rows[index][best[index]] > own(index)]
    suspects.sort(key=own)
    return [
        (index, given[index], best[index], 1 - own(index))
        for index in suspects[: math.floor(count + 0.5)]
    ]


def test_a_case_worked_out_by_hand():
    probabilities = torch.tensor(
        [
            # Labelled 0; the threshold is 0.6: the first and third are confidently 0.
            [0.9, 0.1, 0.0],
            [0.3, 0.1, 0.6],
            [0.6, 0.4, 0.0],
            # Labelled 1; the threshold is 0.5: the first is confidently 1, the second 0, the last
            # two none. So half of the four labels are wrong.
            [0.1, 0.9, 0.0],
            [0.7, 0.3, 0.0],
            [0.45, 0.35, 0.2],
            [0.3, 0.45, 0.25],
        ]
    )
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    issues = find_label_issues(probabilities, labels)
    assert [_places(issue) for issue in issues] == [(4, 1, 0), (5, 1, 0)]
    assert [issue.score for issue in issues] == pytest.approx([0.7, 0.65])


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), classes=st.integers(1, 5))
def test_it_is_the_rule_followed_image_by_image(seed, count, classes):
    probabilities, labels = _cases(seed=seed, count=count, classes=classes)
    issues = find_label_issues(probabilities, labels)
    expected = _by_hand(probabilities, labels)
    assert [_places(issue) for issue in issues] == [case[:3] for case in expected]
    assert [issue.score for issue in issues] == pytest.approx([case[3] for case in expected])
    assert all(0 < issue.score <= 1 and issue.given != issue.suggested for issue in issues)


@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 40), order=st.randoms(use_true_random=False)
)
def test_the_order_of_images_does_not_matter(seed, count, order):
    probabilities, labels = _cases(seed=seed, count=count, classes=3)
    places = list(range(count))
    order.shuffle(places)
    moved = find_label_issues(probabilities[places], labels[places])
    assert {(places[issue.index], issue.given, issue.suggested) for issue in moved} == {
        _places(issue) for issue in find_label_issues(probabilities, labels)
    }


def test_planted_errors_come_first_and_clean_labels_are_no_issues():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 3
    logits = torch.randn(300, 3, generator=generator)
    logits[torch.arange(300), truth] += 6
    probabilities = logits.softmax(1)
    labels = truth.clone()
    planted = torch.randperm(300, generator=generator)[:15]
    labels[planted] = (truth[planted] + 1) % 3
    issues = find_label_issues(probabilities, labels)
    first = issues[:15]
    assert len({issue.index for issue in first} & set(planted.tolist())) >= 14
    assert all(issue.suggested == truth[issue.index] for issue in first)
    assert len(find_label_issues(probabilities, truth)) <= 3


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("classes", [1, 4])
def test_images_of_one_class_and_none_have_no_issues(count, classes):
    probabilities, _ = _cases(seed=0, count=count, classes=classes)
    labels = torch.zeros(count, dtype=torch.int64)
    assert find_label_issues(probabilities, labels) == ()
    hot = torch.ones(count, classes)
    assert find_multilabel_issues(probabilities, hot) == ()
    assert find_multilabel_issues(probabilities, 1 - hot) == ()


def test_images_without_probabilities_are_left_out():
    probabilities, labels = _cases(seed=1, count=40, classes=3)
    unknown = torch.full((1, 3), torch.nan)
    issues = find_label_issues(torch.cat([unknown, probabilities]), torch.cat([labels[:1], labels]))
    expected = find_label_issues(probabilities, labels)
    assert expected
    assert issues == tuple(replace(issue, index=issue.index + 1) for issue in expected)
    assert find_label_issues(unknown, torch.tensor([0])) == ()


def test_labels_of_several_are_judged_each_for_itself():
    generator = torch.Generator().manual_seed(5)
    targets = (torch.rand(60, 3, generator=generator) > 0.5).float()
    noise = torch.rand(60, 3, generator=generator) * 0.4
    probabilities = (targets * 0.6 + noise).clamp(0, 1)
    for place in ((7, 1), (20, 2)):
        probabilities[place] = 0.05 + 0.9 * targets[place]
        targets[place] = 1 - targets[place]
    issues = find_multilabel_issues(probabilities, targets)
    assert {(issue.index, issue.label, issue.is_given) for issue in issues} == {
        (7, 1, bool(targets[7, 1])),
        (20, 2, bool(targets[20, 2])),
    }
    assert [issue.score for issue in issues] == sorted((i.score for i in issues), reverse=True)
    for issue in issues:
        shown = float(probabilities[issue.index, issue.label])
        assert issue.score == pytest.approx(1 - shown if issue.is_given else shown, abs=1e-6)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"got \[4, 2\] and \[3\]"):
        find_label_issues(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \[4, 2\] and \[4\]"):
        find_multilabel_issues(torch.zeros(4, 2), torch.zeros(4))
