"""Exactly what a freeze policy promises moves in a real training: parameters and statistics."""

import pytest
import torch

from finetune.training.trainer import fit

EPOCHS = {"gradual": 3}
"""In three epochs of gradual unfreezing the head learns alone, then layer4, then layer3 with it."""


def copies(module):
    """Parameters and buffers (BatchNorm's statistics) by name."""
    return {name: value.clone() for name, value in module.classifier.state_dict().items()}


def stage_of(name):
    """Number the stage by the name alone: layer1 to layer4, and the stem before them."""
    part = name.split(".")[1]
    return int(part.removeprefix("layer")) if part.startswith("layer") else 0


def is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def promised(names, policy, *, stages, batchnorm):
    """Name what moves, from the words of the documentation."""
    first_open = {"backbone": 5, "gradual": 3}.get(policy, 0)
    expected = set()
    for name in names:
        if name.startswith("head."):
            expected.add(name)
        elif stage_of(name) < max(first_open, stages):
            continue
        elif is_statistic(name):
            if batchnorm == "train":
                expected.add(name)
        elif policy != "batchnorm_only" or name in norms(names):
            expected.add(name)
    return expected


def norms(names):
    owners = {name.rpartition(".")[0] for name in names if name.endswith("running_mean")}
    return {f"{owner}.{name}" for owner in owners for name in ("weight", "bias")}


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
@pytest.mark.parametrize("stages", [0, 2])
@pytest.mark.parametrize(
    "policy", ["none", "probe_then_finetune", "backbone", "gradual", "batchnorm_only"]
)
def test_exactly_what_is_promised_moves(
    make_module, make_data, make_trainer, policy, stages, batchnorm
):
    # Of Adam, every step is as long, so that nothing that learns stays where it is by chance.
    module = make_module(policy, stages=stages, batchnorm=batchnorm, optimizer="adamw", lr=0.01)
    before = copies(module)
    trainer = make_trainer(epochs=EPOCHS.get(policy, 1), gradual=policy == "gradual")
    fit(trainer, module, make_data(), resume_from=None)
    after = copies(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == promised(before, policy, stages=stages, batchnorm=batchnorm)


def test_the_promises_tell_the_policies_apart(make_module):
    """Guard the list above: were two policies alike in it, the test could not fail for one."""
    names = copies(make_module())
    found = {
        (policy, stages, batchnorm): frozenset(
            promised(names, policy, stages=stages, batchnorm=batchnorm)
        )
        for policy in ("none", "backbone", "gradual", "batchnorm_only")
        for stages in (0, 2)
        for batchnorm in ("train", "frozen")
    }
    # `backbone` opens nothing and `gradual` had not come to the first two stages.
    assert len(set(found.values())) == 4 + 1 + 2 + 4
    assert found["backbone", 0, "train"] == {"head.linear.weight"}
    assert found["none", 0, "train"] == set(names)


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_frozen_statistics_normalise_by_themselves_in_training_too(make_module, batchnorm):
    """In train mode an image's answer depends on the others of its batch, unless frozen."""
    module = make_module("none", batchnorm=batchnorm)
    module.train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        alone, together = module(images[:2]), module(images)[:2]
    assert torch.allclose(alone, together, atol=1e-5) is (batchnorm == "frozen")


def test_what_is_frozen_has_no_gradient_and_no_place_in_the_optimizer(
    make_module, make_data, make_trainer
):
    module = make_module("batchnorm_only", stages=2)
    trainer = make_trainer(epochs=1)
    fit(trainer, module, make_data(), resume_from=None)
    names = {id(value): name for name, value in module.classifier.named_parameters()}
    learns = {
        names[id(value)]
        for group in trainer.optimizers[0].param_groups
        for value in group["params"]
    }
    expected = {
        name
        for name in promised(copies(module), "batchnorm_only", stages=2, batchnorm="train")
        if not is_statistic(name)
    }
    assert learns == expected
    assert {n for n, value in module.classifier.named_parameters() if value.requires_grad} == learns
