"""What to worry about, in words."""

from dataclasses import replace

import pytest

from finetune.evaluation.worries import Facts, Scored, Trouble, find_worries

FINE = Facts(
    metric="accuracy",
    value=0.95,
    low=0.93,
    high=0.97,
    images=1000,
    split="test",
    val_value=0.955,
    classes=[Scored("ant", 500, 0.95), Scored("bee", 500, 0.95)],
    mistakes=[0.6, 0.7, 0.55],
    calibration_error=0.02,
    threshold_error=(0.02, 0.02),
    sets_coverage=(0.95, 0.95),
    label_issues=(0, 2000),
)


def test_where_all_is_well_there_is_nothing_to_say() -> None:
    assert find_worries(FINE) == ()


@pytest.mark.parametrize(
    ("change", "title", "text"),
    [
        (
            {"value": 0.8, "low": 0.77, "high": 0.83},
            "Worse on test",
            "95.5 % on validation to 80.0",
        ),
        ({"low": 0.85, "high": 0.99}, "1000 images measure little", "85.0 % and 99.0 %"),
        ({"chose_on_split": True}, "No image was kept for a test", "too good"),
        (
            {"classes": [Scored("ant", 500, 0.99), Scored("bee", 50, 0.8)]},
            '"bee" is found least',
            "Of 50 images of bee, 10 are taken",
        ),
        (
            {"classes": [Scored("ant", 500, 0.95), Scored("bee", 7, 0.95)]},
            'Only 7 images show "bee"',
            "rests on 7 images",
        ),
        (
            {"classes": [Scored("ant", 500, 0.95), Scored("bee", 0, None)]},
            "Nothing is known of 1 of 2 classes",
            "shows bee",
        ),
        ({"mistakes": [0.95, 0.99, 0.6]}, "2 of 3 mistakes are made with certainty", "90.0 %"),
        ({"calibration_error": 0.12}, "not to be taken at their word", "12.0 %"),
        ({"threshold_error": (0.09, 0.02)}, "Abstaining helps less", "9.0 % are wrong"),
        ({"sets_coverage": (0.80, 0.95)}, "Prediction sets miss", "80.0 % of the cases"),
        ({"label_issues": (30, 2000)}, "30 labels look wrong", "Of 2000 training"),
        (
            {"findings": [Trouble("no_groups", False, "No group.", "Name them.")]},
            "The images: no groups",
            "No group.",
        ),
        ({"is_best_last": True}, "The training could go on", "last epoch"),
        ({"left_out": 3}, "3 images could not be read", "not part"),
    ],
)
def test_each_trouble_is_named_with_its_numbers(
    change: dict[str, object], title: str, text: str
) -> None:
    (worry,) = find_worries(replace(FINE, **change))  # type: ignore[arg-type]
    assert title in worry.title
    assert text in worry.text
    assert worry.remedy
    assert 0 < worry.weight <= 1


def test_the_worst_come_first_and_no_more_than_three() -> None:
    facts = replace(
        FINE,
        findings=[
            Trouble("duplicates", False, "Some copies.", "Remove them."),
            Trouble("duplicates_across_splits", True, "Copies in test.", "Move them."),
        ],
        left_out=2,
        is_best_last=True,
        calibration_error=0.2,
    )
    worries = find_worries(facts)
    assert len(worries) == 3
    assert "duplicates across splits" in worries[0].title
    assert [worry.weight for worry in worries] == sorted(
        (worry.weight for worry in worries), reverse=True
    )


def test_what_is_unknown_starts_no_rule() -> None:
    assert find_worries(Facts("accuracy", None, 10, "val")) == ()


def test_few_images_scatter_and_are_not_called_miscalibrated() -> None:
    assert find_worries(replace(FINE, images=100, calibration_error=0.12)) == ()
