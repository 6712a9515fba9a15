import math
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.config.learning import (
    CosineSchedulerConfig,
    FreezeConfig,
    ModelConfig,
    OptimizerConfig,
    TrainerConfig,
)
from finetune.models.freezing import FreezePolicy
from finetune.training.recipe import (
    Choice,
    Facts,
    choose_augmentation,
    choose_image_size,
    choose_recipe,
    choose_warmup,
    describe,
    fit_to_time,
)
from finetune.usage import CONF

KEYS = {
    "model.image_size_px",
    "trainer.batch_size",
    "trainer.epochs",
    "trainer.ema_decay",
    "trainer.early_stopping_patience",
    "optimizer.lr",
    "optimizer.backbone_lr_factor",
    "optimizer.layer_decay",
    "optimizer.weight_decay",
    "scheduler.warmup_epochs",
    "freeze.batchnorm",
    "augmentation.transforms",
    "augmentation.mixup_alpha",
}


def make_facts(**known):
    usual = {
        "num_images": 1_000,
        "shorter_side_px": 300.0,
        "native_size_px": 224,
        "is_pretrained": True,
        "is_embedded": False,
        "starts_from_probe": True,
        "policy": "probe_then_finetune",
        "world_size": 1,
        "batch_size": None,
        "epochs": None,
    }
    return Facts(**{**usual, **known})


any_facts = st.builds(
    Facts,
    num_images=st.one_of(st.integers(1, 300), st.integers(1, 20_000_000)),
    shorter_side_px=st.none() | st.floats(1, 20_000),
    native_size_px=st.integers(16, 2_048),
    is_pretrained=st.booleans(),
    is_embedded=st.booleans(),
    starts_from_probe=st.booleans(),
    policy=st.sampled_from(get_args(FreezePolicy)),
    world_size=st.integers(1, 64),
    batch_size=st.none() | st.integers(1, 4_096),
    epochs=st.none() | st.integers(1, 1_000),
)


def config_of(values):
    """Build the groups of the config with what was chosen; they refuse what lies out of range."""
    freeze = {"policy": "none", "epochs_per_stage": 1, "stages": 0}
    trainer = {
        "accelerator": "auto",
        "strategy": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "precision": "auto",
        "accumulate_batches": 1,
        "gradient_clip": None,
        "max_time_minutes": None,
        "checkpoint_every_minutes": None,
        "compile": False,
    }
    model = {"backbone": "nano", "pretrained": False, "weights": None, "resize_mode": "crop"}

    def group(name):
        return {
            key.partition(".")[2]: value for key, value in values.items() if key.startswith(name)
        }

    return (
        ModelConfig(**model, **group("model.")),
        FreezeConfig(**freeze, **group("freeze.")),
        TrainerConfig(**trainer, **group("trainer.")),
        OptimizerConfig(name="adamw", momentum=0.9, **group("optimizer.")),
        CosineSchedulerConfig(name="cosine", final_lr_factor=0.0, **group("scheduler.")),
    )


@given(any_facts)
@example(make_facts(num_images=20_000_000, epochs=1_000))
@example(make_facts(num_images=4, world_size=3, is_pretrained=False))
@example(make_facts(num_images=1, world_size=8))
def test_every_choice_fits_the_config_whatever_the_facts(facts):
    choices = choose_recipe(facts)
    assert set(choices) == KEYS
    values = {key: choice.value for key, choice in choices.items()}
    assert "auto" not in values.values()
    config_of(values)
    assert (CONF / "augmentation" / f"{values['augmentation.transforms']}.yaml").is_file()
    assert 0 <= values["augmentation.mixup_alpha"] < 10
    assert 0 <= values["trainer.ema_decay"] < 1


@given(any_facts)
def test_every_choice_has_a_reason(facts):
    for key, choice in choose_recipe(facts).items():
        assert choice.reason.strip() == choice.reason, key
        assert len(choice.reason) >= len("likewise"), key
        assert not choice.reason.endswith("."), key  # it stands in brackets


@given(any_facts)
@example(make_facts(num_images=4, world_size=3))
@example(make_facts(num_images=7, world_size=4))
def test_a_batch_can_be_filled_and_shared_by_the_processes(facts):
    size = choose_recipe(facts)["trainer.batch_size"].value
    assert 1 <= size <= facts.num_images
    if facts.num_images >= facts.world_size:
        assert size % facts.world_size == 0
    if facts.num_images >= 2 * facts.world_size:
        assert size >= 2 * facts.world_size  # BatchNorm needs two images in each process


@given(any_facts)
def test_the_warm_up_is_over_before_the_training(facts):
    choices = choose_recipe(facts)
    epochs = choices["trainer.epochs"].value
    assert epochs >= 1
    planned = epochs if facts.epochs is None else facts.epochs
    assert 0 <= choices["scheduler.warmup_epochs"].value < planned


@given(any_facts, st.integers(1, 500), st.integers(1, 4_096))
def test_the_rest_follows_what_was_typed(facts, epochs, batch_size):
    """Typing what the recipe would have chosen changes nothing, and other numbers do count."""
    chosen = choose_recipe(make_facts(**fields(facts), epochs=None, batch_size=None))
    same = choose_recipe(
        make_facts(
            **fields(facts),
            epochs=chosen["trainer.epochs"].value,
            batch_size=chosen["trainer.batch_size"].value,
        )
    )
    assert same == chosen
    other = choose_recipe(make_facts(**fields(facts), epochs=epochs, batch_size=batch_size))
    assert other["scheduler.warmup_epochs"] == choose_warmup(epochs)
    steps = max(1, facts.num_images // batch_size) * epochs
    assert f"{steps} steps" in other["trainer.ema_decay"].reason


def fields(facts):
    names = set(Facts.__slots__) - {"epochs", "batch_size"}
    return {name: getattr(facts, name) for name in names}


def test_more_steps_are_remembered_longer():
    decays = [
        choose_recipe(make_facts(epochs=epochs))["trainer.ema_decay"].value
        for epochs in (1, 10, 100, 1_000)
    ]
    assert decays == sorted(set(decays))


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 512), st.integers(1, 512))
def test_more_images_and_larger_batches_never_trust_their_statistics_less(one, other, few, many):
    order = ("frozen", "train")
    (images, more), (small, large) = sorted((one, other)), sorted((few, many))

    def trust(num_images, batch_size):
        facts = make_facts(num_images=num_images, batch_size=batch_size)
        return order.index(choose_recipe(facts)["freeze.batchnorm"].value)

    assert trust(images, small) <= trust(images, large) <= trust(more, large)
    assert trust(images, 1) == 0  # the statistics of one image are none


@given(any_facts)
def test_random_weights_learn_at_one_rate_and_gather_their_own_statistics(facts):
    choices = choose_recipe(make_facts(**{**fields(facts), "is_pretrained": False}))
    assert choices["optimizer.backbone_lr_factor"].value == 1
    assert choices["optimizer.layer_decay"].value == 1
    assert choices["freeze.batchnorm"].value == "train"


@given(any_facts)
def test_what_is_pretrained_learns_slower_and_for_fewer_epochs(facts):
    pretrained, random = (
        choose_recipe(make_facts(**{**fields(facts), "is_embedded": False, "is_pretrained": flag}))
        for flag in (True, False)
    )
    rates = [
        choices["optimizer.lr"].value * choices["optimizer.backbone_lr_factor"].value
        for choices in (pretrained, random)
    ]
    assert rates[0] < rates[1]
    assert 0 < pretrained["optimizer.layer_decay"].value <= 1
    assert pretrained["trainer.epochs"].value <= random["trainer.epochs"].value


@given(any_facts)
def test_embedded_weights_learn_faster_than_those_of_photographs_at_the_size_of_the_images(facts):
    known = {**fields(facts), "is_pretrained": True, "starts_from_probe": True}
    embedded, other, random = (
        choose_recipe(make_facts(**{**known, **more}))
        for more in (
            {"is_embedded": True},
            {"is_embedded": False},
            {"is_embedded": False, "is_pretrained": False},
        )
    )
    rates = [
        choices["optimizer.lr"].value * choices["optimizer.backbone_lr_factor"].value
        for choices in (other, embedded, random)
    ]
    assert rates == sorted(rates)
    assert len(set(rates)) == 3
    assert embedded["model.image_size_px"].value == random["model.image_size_px"].value
    assert embedded["trainer.epochs"] == other["trainer.epochs"]


@given(any_facts)
def test_without_a_probe_embedded_weights_are_trained_like_random_ones_for_fewer_epochs(facts):
    known = {**fields(facts), "starts_from_probe": False, "is_embedded": True}
    embedded = choose_recipe(make_facts(**{**known, "is_pretrained": True}))
    random = choose_recipe(make_facts(**{**known, "is_pretrained": False}))
    for key in ("optimizer.lr", "optimizer.backbone_lr_factor", "freeze.batchnorm"):
        assert embedded[key].value == random[key].value
        assert "random weights have" not in embedded[key].reason
    assert embedded["trainer.epochs"].value <= random["trainer.epochs"].value


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.booleans())
def test_more_images_take_fewer_epochs_and_never_smaller_batches(one, other, is_pretrained):
    few, many = (
        choose_recipe(make_facts(num_images=n, is_pretrained=is_pretrained))
        for n in sorted((one, other))
    )
    assert few["trainer.epochs"].value >= many["trainer.epochs"].value
    assert few["trainer.batch_size"].value <= many["trainer.batch_size"].value
    assert few["augmentation.mixup_alpha"].value <= many["augmentation.mixup_alpha"].value


@given(st.integers(1, 10_000), st.floats(1e-3, 1e5), st.floats(0, 1e7))
def test_as_many_epochs_as_fit_are_planned(epochs, epoch_seconds, seconds):
    choice = fit_to_time(epochs, epoch_seconds=epoch_seconds, seconds=seconds)
    assert 0 <= choice.value <= epochs
    assert choice.value * epoch_seconds <= seconds * (1 + 1e-9)
    if choice.value < epochs:
        assert (choice.value + 1) * epoch_seconds > seconds * (1 - 1e-9)
        assert f"without the limit {epochs}" in choice.reason
    else:
        assert "all fit" in choice.reason


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, 0), (-5, 0), (9.9, 0), (10, 1), (59, 5), (60, 6), (1e9, 6)]
)
def test_epochs_of_ten_seconds(seconds, expected):
    choice = fit_to_time(6, epoch_seconds=10, seconds=seconds)
    assert choice.value == expected
    assert choice.reason.startswith("an epoch takes about 10 s")


sides = st.none() | st.floats(1, 20_000)


@given(sides, st.integers(16, 2_048))
def test_pretrained_weights_see_the_size_that_they_were_made_for(side, native):
    assert choose_image_size(side, native_size_px=native, expects_it=True).value == native
    assert choose_image_size(None, native_size_px=native, expects_it=False).value == native


@given(st.floats(1, 20_000), st.floats(1, 20_000))
def test_random_weights_see_no_more_than_the_images_show(one, other):
    smaller, larger = (
        choose_image_size(side, native_size_px=224, expects_it=False).value
        for side in sorted((one, other))
    )
    smallest = choose_image_size(1.0, native_size_px=224, expects_it=False).value
    assert smallest <= smaller <= larger
    assert smaller <= max(smallest, min(one, other))


@pytest.mark.parametrize("side", [8, 28, 300])
def test_the_size_is_explained_by_that_of_the_images(side):
    choice = choose_image_size(side, native_size_px=224, expects_it=False)
    assert f"{side} px" in choice.reason


@given(st.integers(1, 10_000))
def test_the_warm_up_grows_with_the_training_and_stays_short(epochs):
    warmup = choose_warmup(epochs).value
    assert 0 < warmup < epochs
    assert warmup <= choose_warmup(epochs + 1).value
    assert math.isclose(warmup, round(warmup, 2))


@pytest.mark.parametrize("num_images", [1, 999, 10**6])
def test_the_augmentation_is_one_of_ours_and_names_the_images(num_images):
    choice = choose_augmentation(num_images)
    assert f"{num_images:,} images" in choice.reason
    assert (CONF / "augmentation" / f"{choice.value}.yaml").is_file()


def test_a_choice_in_words():
    choices = {"trainer.epochs": Choice(3, "few images"), "optimizer.lr": Choice(0.001, "usual")}
    assert describe(choices) == {
        "trainer.epochs": "3 (few images)",
        "optimizer.lr": "0.001 (usual)",
    }


@given(num_images=st.integers(1, 1_000_000), is_pretrained=st.booleans())
def test_stages_that_open_one_by_one_have_the_epochs_for_it(num_images, is_pretrained):
    facts = {"num_images": num_images, "is_pretrained": is_pretrained, "starts_from_probe": False}
    gradual = choose_recipe(make_facts(**facts, policy="gradual"))["trainer.epochs"]
    at_once = choose_recipe(make_facts(**facts, policy="none"))["trainer.epochs"]
    assert gradual.value == max(10, at_once.value)
    assert ("one by one" in gradual.reason) == (gradual.value > at_once.value)


def test_training_stops_early_only_where_a_probe_is_there_to_fall_back_on():
    key = "trainer.early_stopping_patience"
    assert choose_recipe(make_facts(epochs=8))[key].value == 3
    assert choose_recipe(make_facts(epochs=1))[key].value == 2
    without = choose_recipe(make_facts(starts_from_probe=False))[key]
    assert without.value is None
    assert str(without) == "null"  # as one would type it
