"""Whole trainings on one GPU: number formats, memory layout, strategies."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import finetune
from finetune.cli import main
from finetune.commands import components
from finetune.models.backbones import create_backbone
from finetune.models.classifier import Classifier
from finetune.models.heads import create_head
from finetune.training.checkpoints import load_checkpoint
from finetune.training.hardware import choose_precision
from finetune.training.module import FineTuning

pytestmark = pytest.mark.gpu

Train = Callable[..., Path]


def losses_of(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]


def load_into_a_new_classifier(path: Path) -> Classifier:
    """Load a checkpoint with strict names and shapes, as plain torch would."""
    state = load_checkpoint(path)["state_dict"]
    backbone = create_backbone("nano", image_size_px=32)
    head = create_head("linear", in_features=backbone.num_features, num_classes=2)
    classifier = Classifier(backbone, head)
    prefix = "classifier."
    classifier.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
    return classifier


def check_run(run: Path) -> None:
    """Check that the loss fell, and that all that is kept is whole, finite and float32."""
    losses = losses_of(run)
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        weights = [v for v in load_checkpoint(path)["state_dict"].values() if v.is_floating_point()]
        assert {value.dtype for value in weights} == {torch.float32}
        assert all(value.isfinite().all() for value in weights)
        load_into_a_new_classifier(path)
    assert json.loads((run / "metrics.json").read_text())["val"]["accuracy"] >= 0.8
    assert finetune.load_model(run).class_names == ["lying", "standing"]


@pytest.fixture
def computed_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, bool, str]]:
    """Return a list that fills with dtype, channels_last and device of a convolution's output."""
    seen: list[tuple[torch.dtype, bool, str]] = []
    build = components.create_backbone

    def watched(*arguments: object, **keywords: object) -> nn.Module:
        backbone = build(*arguments, **keywords)  # type: ignore[arg-type]
        # The second: of three channels alone, torch cannot tell the layouts apart.
        convolution = [part for part in backbone.modules() if isinstance(part, nn.Conv2d)][1]
        convolution.register_forward_hook(
            lambda module, inputs, output: (
                seen.append(
                    (
                        output.dtype,
                        output.is_contiguous(memory_format=torch.channels_last),
                        output.device.type,
                    )
                )
                if module.training
                else None
            )
        )
        return backbone

    monkeypatch.setattr(components, "create_backbone", watched)
    return seen


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_each_number_format_trains_in_channels_last_and_keeps_float32(
    train_on_gpu: Train,
    computed_in: list[tuple[torch.dtype, bool, str]],
    precision: str,
    dtype: torch.dtype,
) -> None:
    if precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no native bfloat16")
    run = train_on_gpu(f"trainer.precision={precision}")
    check_run(run)
    assert set(computed_in) == {(dtype, True, "cuda")}


def test_auto_takes_a_number_format_of_this_gpu(train_on_gpu: Train) -> None:
    run = train_on_gpu("trainer.precision=auto")
    check_run(run)
    chosen, _ = choose_precision("gpu", "auto")
    decisions = json.loads((run / "run.json").read_text())["decisions"]
    assert decisions["precision"].startswith(chosen)
    assert torch.cuda.get_device_name(0) in decisions["device"]


def test_ddp_of_one_process_has_the_figures_of_none(train_on_gpu: Train) -> None:
    common = ("trainer.precision=32", "augmentation=none", "freeze.batchnorm=frozen")
    alone = train_on_gpu(*common, name="alone")
    ddp = train_on_gpu(*common, "trainer.strategy=ddp", name="ddp")
    check_run(ddp)
    # Kernels may differ from run to run in their last digits, and those grow.
    assert losses_of(ddp) == pytest.approx(losses_of(alone), rel=0.02)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_fsdp_trains_and_leaves_a_whole_checkpoint(train_on_gpu: Train, precision: str) -> None:
    if precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no native bfloat16")
    run = train_on_gpu("trainer=fsdp", f"trainer.precision={precision}")
    check_run(run)
    saved = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    expected = create_backbone("nano", image_size_px=32).state_dict()
    prefix = "classifier.backbone."
    shapes = {k.removeprefix(prefix): v.shape for k, v in saved.items() if k.startswith(prefix)}
    assert shapes == {name: value.shape for name, value in expected.items()}


def test_a_probe_and_an_average_are_candidates_on_a_gpu_too(
    train_on_gpu: Train, tmp_path: Path
) -> None:
    weights = tmp_path / "nano.pt"
    torch.manual_seed(0)
    torch.save(create_backbone("nano", image_size_px=32).state_dict(), weights)
    run = train_on_gpu(
        f"model.weights={weights}", "freeze=probe_then_finetune", "trainer.ema_decay=0.5"
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["candidates"]) == 4
    assert metrics["chosen"] in metrics["candidates"]


def test_a_batch_too_large_for_the_gpu_is_one_message(
    stripes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def takes_everything(*_: object) -> None:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr(FineTuning, "on_train_start", takes_everything)
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "model=nano", "freeze=none"]
    words += ["trainer=gpu", "trainer.epochs=1", "trainer.batch_size=16", "dataset.workers=0"]
    assert main([*words, "model.image_size_px=32"]) == 1
    message = capsys.readouterr().err
    assert "memory is too small" in message
    assert "trainer.batch_size" in message
    assert "Traceback" not in message
