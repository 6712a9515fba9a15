"""Which images, how they are divided, and what is made of them."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import FINDINGS, AugmentationConfig, DatasetConfig
from finetune.errors import ConfigError
from finetune.usage import CONF
from finetune.validation import validate

DATASET = {
    **yaml.safe_load((CONF / "dataset" / "_base.yaml").read_text(encoding="utf-8")),
    "root": "flowers",
}
AUGMENTATION = {
    "transforms": [{"name": "HorizontalFlip", "p": 0.5}],
    "random_erasing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}


def dataset(**values: Any) -> DatasetConfig:
    return validate(DatasetConfig, {**DATASET, **values})


def augmentation(**values: Any) -> AugmentationConfig:
    return validate(AugmentationConfig, {**AUGMENTATION, **values})


def refusal(**values: Any) -> str:
    build = augmentation if values.keys() <= AUGMENTATION.keys() else dataset
    with pytest.raises(ConfigError) as caught:
        build(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("source", ["folder", "digits"], ["manifest", None]),
        ("download", [None, "pneumonia_mnist"], ["imagenet", True]),
        ("label_separator", ["|", ", "], ["", None]),
        ("val_fraction", [0.01, 0.99], [0, 1, -0.1, None]),
        ("test_fraction", [0, 0.79], [1, -0.1]),
        ("folds", [None, 2, 100], [1, 101, 2.5, "all", True]),
        ("balance", ["auto", "none", "sampler", "loss", "logit_adjustment"], ["weights", None]),
        ("monitor", ["auto", "loss", "accuracy", "auroc"], ["f1", None]),
        ("metrics", [["accuracy"], ["auroc", "macro_f1"]], [[], ["loss"], "loss", None]),
        ("color", ["rgb", "grey"], ["gray", "RGB", None]),
        ("min_side_px", [1, 4000], [0, 1.5, None]),
        ("max_megapixels", [0.01], [0, -1]),
        ("cache", ["none", "ram", "disk"], ["memory", None, True]),
        ("cache_gb", [0.001, 1000], [0, -1]),
        ("workers", [0, 256, "auto"], [257, "all"]),
    ],
)
def test_ranges_of_a_data_set(key: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        assert getattr(dataset(**{key: value}), key) == value
    for value in outside:
        assert refusal(**{key: value}).startswith(key), value


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("transforms", [[], [{"name": "CLAHE"}]], [{"name": "CLAHE"}, ["CLAHE"], None]),
        ("random_erasing", [0, 1], [-0.1, 1.1, True]),
        ("mixup_alpha", [0, 0.2, 8], [-0.1, None]),
        ("cutmix_alpha", [0, 1], [-1, "x"]),
    ],
)
def test_ranges_of_an_augmentation(key: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        assert getattr(augmentation(**{key: value}), key) == value
    for value in outside:
        assert refusal(**{key: value}).startswith(key), value


def test_fractions_leave_something_to_train_on() -> None:
    message = refusal(val_fraction=0.6, test_fraction=0.4)
    assert message.startswith("val_fraction 0.6 + test_fraction 0.4 leave nothing")


@given(
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_fractions_are_accepted_exactly_where_their_sum_is_below_one(
    val: float, test: float
) -> None:
    if val + test < 1:
        assert dataset(val_fraction=val, test_fraction=test).test_fraction == test
    else:
        assert "sum must be < 1" in refusal(val_fraction=val, test_fraction=test)


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_is_accepted_by_its_name(name: str) -> None:
    assert dataset(accept=[name]).accept == [name]


def test_an_unknown_finding_gets_the_nearest_word() -> None:
    message = refusal(accept=["duplicats"])
    assert message.startswith("accept: got 'duplicats', expected some of unreadable, ")
    assert message.endswith("Did you mean `duplicates`?")


def test_a_group_pattern_is_a_regular_expression() -> None:
    assert dataset(group_pattern=r"person(\d+)_").group_pattern == r"person(\d+)_"
    message = refusal(group_pattern="person(")
    assert message.startswith("group_pattern: got 'person(', no regular expression: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 2}, "fold: got 2, but folds is null; set dataset.folds=5."),
        ({"fold": "all"}, "fold: got all, but folds is null; set dataset.folds=5."),
        ({"folds": 5, "fold": 5}, "fold: got 5, expected 0 to 4 (folds=5) or all."),
        (
            {"folds": 5, "split_file": "split.csv"},
            "folds and split_file both divide the images; give one of them.",
        ),
    ],
)
def test_what_divides_the_images_fits_together(settings: dict[str, Any], message: str) -> None:
    assert refusal(**settings) == message


@pytest.mark.parametrize("fold", [0, 4, "all"])
def test_folds_are_chosen_by_number_or_all(fold: int | str) -> None:
    assert dataset(folds=5, fold=fold).fold == fold


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 20_000 + ")" * 20_000])
def test_a_pattern_that_python_cannot_hold_is_refused(pattern):
    assert "no regular expression" in refusal(group_pattern=pattern)


def test_a_list_of_metrics_has_at_least_one():
    assert refusal(metrics=[]) == "metrics: got [], expected at least one."
