import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from finetune.errors import TrainingError
from finetune.evaluation.metrics import classification_metrics
from finetune.evaluation.multilabel import multilabel_metrics
from finetune.training.checkpoints import load_checkpoint
from finetune.training.mixing import create_mix
from finetune.training.module import why_undefined
from finetune.training.trainer import fit


def copies(module):
    """Parameters and buffers (BatchNorm's statistics) by name."""
    return {name: value.clone() for name, value in module.classifier.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class PerEpoch(Callback):
    """Keep the state before the first and after each epoch."""

    def on_train_start(self, _, pl_module):
        self.states = [copies(pl_module)]

    def on_train_epoch_end(self, _, pl_module):
        self.states.append(copies(pl_module))


class Poison(Callback):
    """Break a weight after the last step of an epoch, when every loss of it was finite."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.current_epoch == self.epoch and trainer.is_last_batch:
            with torch.no_grad():
                pl_module.classifier.head.linear.weight[0, 0] = float("nan")


class NotFinite(nn.Module):
    """Give cross-entropy for ``good`` batches, then what it is told."""

    def __init__(self, good, value):
        super().__init__()
        self.good = good
        self.value = value

    def forward(self, logits, labels):
        self.good -= 1
        loss = nn.functional.cross_entropy(logits, labels)
        return loss if self.good >= 0 else loss * self.value


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_backbone_does_not_move_at_all(make_module, make_data, make_trainer, optimizer):
    module = make_module("backbone", optimizer=optimizer, dropout=0.2)
    before = copies(module)
    fit(make_trainer(), module, make_data(), resume_from=None)
    assert any("running_mean" in name for name in before)
    assert moved(before, copies(module)) == {"head.linear.weight"}


def test_a_frozen_backbone_stays_in_eval_mode(make_module):
    module = make_module("backbone")
    for mode in (True, False, True):
        module.train(mode)
        assert module.classifier.head.training is mode
        assert not any(part.training for part in module.classifier.backbone.modules())
    assert list(module.parts()) == ["head"]
    assert not any(p.requires_grad for p in module.classifier.backbone.parameters())


def test_without_freezing_everything_moves(make_module, make_data, make_trainer):
    # Of Adam, every step is as long; the last BatchNorm of a block starts at zero, and lets
    # nothing through to what lies before it at first.
    module = make_module("none", optimizer="adamw", lr=0.01)
    before = copies(module)
    fit(make_trainer(epochs=1), module, make_data(), resume_from=None)
    assert moved(before, copies(module)) == set(before)


@pytest.mark.parametrize("epochs_per_stage", [1, 2])
def test_gradual_opens_one_more_stage_at_a_time(
    make_module, make_data, make_trainer, epochs_per_stage
):
    module = make_module("gradual", epochs_per_stage=epochs_per_stage, optimizer="adamw", lr=0.01)
    watch = PerEpoch()
    epochs = 7 if epochs_per_stage == 1 else 5
    fit(make_trainer(watch, epochs=epochs, gradual=True), module, make_data(), resume_from=None)
    stages = [
        {
            f"backbone.{name}"
            for name in copies_of_backbone(module)
            if name in stage.parameter_names or name.rpartition(".")[0] in stage.module_names
        }
        for stage in module.stages
    ]
    assert len(watch.states) == epochs + 1
    for epoch in range(epochs):
        num_open = min(len(stages), epoch // epochs_per_stage)
        expected = {"head.linear.weight"}.union(*stages[len(stages) - num_open :])
        assert moved(watch.states[epoch], watch.states[epoch + 1]) == expected, epoch


def copies_of_backbone(module):
    return module.classifier.backbone.state_dict()


# The last backbone has a stage that timm itself calls "head".
@pytest.mark.parametrize("backbone", ["nano", "mobilenetv3_small_050", "inception_next_atto"])
def test_every_parameter_belongs_to_one_part(make_module, backbone):
    module = make_module("none", backbone=backbone)
    parts = module.parts()
    named = [id(parameter) for part in parts.values() for parameter in part]
    assert sorted(named) == sorted(id(p) for p in module.classifier.parameters())
    assert list(parts)[-1] == "head"
    assert [id(p) for p in parts["head"]] == [id(p) for p in module.classifier.head.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    make_module, make_data, make_trainer, tmp_path, value
):
    module = make_module()
    module.loss = NotFinite(4, value)  # three batches an epoch: breaks in the second
    watch = PerEpoch()
    with pytest.raises(
        TrainingError, match=r"training loss is not finite in epoch 2, step 5;.*optimizer\.lr"
    ):
        fit(make_trainer(watch, epochs=3), module, make_data(), resume_from=None)
    for name in ("best", "last"):
        kept = load_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        assert kept["epoch"] == 0
        for key, tensor in watch.states[1].items():
            assert torch.equal(kept["state_dict"][f"classifier.{key}"], tensor)
            assert tensor.isfinite().all()


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(
    make_module, make_data, make_trainer, tmp_path
):
    with pytest.raises(TrainingError, match="validation loss is nan in epoch 2"):
        fit(make_trainer(Poison(1), epochs=3), make_module(), make_data(), resume_from=None)
    for name in ("best", "last"):
        kept = load_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def test_validation_says_what_the_whole_set_says(make_module, make_data, make_trainer):
    module, data = make_module(), make_data()
    trainer = make_trainer(epochs=2)
    fit(trainer, module, data, resume_from=None)
    module.eval()
    images, labels = zip(*(data.val[0, index] for index in range(len(data.val))), strict=True)
    assert len(labels) % data.batch_size  # the last batch is a smaller one
    with torch.inference_mode():
        logits = module(torch.stack(images))
    labels = torch.tensor(labels)
    whole = classification_metrics(logits.softmax(1), labels, ["a", "b"])
    logged = trainer.callback_metrics
    assert logged["val_accuracy"].item() == pytest.approx(whole.accuracy)
    assert logged["val_balanced_accuracy"].item() == pytest.approx(whole.balanced_accuracy)
    assert logged["val_macro_f1"].item() == pytest.approx(whole.macro_f1)
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert logged["val_loss"].item() == pytest.approx(loss, abs=1e-5)


def test_images_are_normalised_on_the_way_in(make_module):
    module = make_module().eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = module.classifier((images.float() / 255 - 0.5) / 0.25)
        assert torch.allclose(module(images), expected, atol=1e-5)
        assert torch.equal(module(images), module(images.float()))


def test_dropout_depends_on_the_seed_and_the_epoch_alone(make_module, make_data, make_trainer):
    def final_loss(torch_seed):
        module = make_module("backbone", dropout=0.5)
        torch.manual_seed(torch_seed)
        trainer = make_trainer(epochs=1)
        fit(trainer, module, make_data(), resume_from=None)
        return trainer.callback_metrics["train_loss"].item()

    assert final_loss(1) == final_loss(2)


def test_several_labels_are_learnt_and_measured(make_module, make_data, make_trainer):
    names = ("accuracy", "macro_f1", "auroc", "mean_average_precision")
    module = make_module(
        task="multilabel", metrics=names, monitor="val_mean_average_precision", optimizer="adamw"
    )
    data = make_data(task="multilabel")
    trainer = make_trainer(epochs=2, monitor="val_mean_average_precision")
    fit(trainer, module, data, resume_from=None)
    module.eval()
    images, targets = zip(*(data.val[0, index] for index in range(len(data.val))), strict=True)
    with torch.inference_mode():
        logits = module(torch.stack(images))
    targets = torch.stack(targets)
    assert targets.shape == logits.shape
    whole = multilabel_metrics(logits.sigmoid(), targets, ["a", "b"])
    logged = trainer.callback_metrics
    assert logged["val_accuracy"].item() == pytest.approx(whole.exact_match)
    for name in names[1:]:
        assert logged[f"val_{name}"].item() == pytest.approx(getattr(whole, name), abs=1e-6)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets).item()
    assert logged["val_loss"].item() == pytest.approx(loss, abs=1e-5)


class Seen(nn.Module):
    """Keep the targets that the loss is given."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.targets = []

    def forward(self, logits, targets):
        self.targets.append(targets)
        return self.loss(logits, targets)


def test_batches_are_mixed_anew_in_each_step_and_alike_in_each_run(
    make_module, make_data, make_trainer
):
    def targets_of(torch_seed, mix):
        module = make_module(mix=mix, optimizer="adamw")
        module.loss = Seen(module.loss)
        torch.manual_seed(torch_seed)
        trainer = make_trainer(epochs=2)
        fit(trainer, module, make_data(), resume_from=None)
        return module.loss.targets, trainer.callback_metrics["train_loss"].item()

    mix = create_mix(mixup_alpha=0.8, cutmix_alpha=0.8, num_classes=2)
    (first, first_loss), (second, second_loss) = targets_of(1, mix), targets_of(2, mix)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first_loss == second_loss
    assert len(first) == 6
    assert all(shares.shape == (4, 2) for shares in first)
    assert len({tuple(shares.flatten().tolist()) for shares in first}) > 3
    plain, _ = targets_of(1, None)
    assert all(labels.dtype == torch.int64 for labels in plain)


def test_an_undefined_monitor_names_the_class_that_validation_lacks(
    make_module, make_data, make_trainer, tmp_path
):
    data = make_data()
    data.val.targets[:] = 1
    module = make_module(metrics=("accuracy", "specificity"), monitor="val_specificity")
    trainer = make_trainer(epochs=2, monitor="val_specificity")
    with pytest.raises(TrainingError, match=r"specificity is undefined.*shows class 0"):
        fit(trainer, module, data, resume_from=None)
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_the_reason_names_few_classes_or_says_that_all_are_everywhere():
    names = [f"class {index}" for index in range(9)]
    message = why_undefined("val_auroc", [0] * 8 + [3], names)
    assert "auroc is undefined, since no validation image shows class 0, class 1" in message
    assert "class 4 and 3 more" in message
    assert "class 5" not in message
    assert "every validation image" in why_undefined("val_auroc", [3, 3], names[:2])
