"""From config to components."""

from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.commands import components, train  # noqa: F401 - imports all that reads `components`
from finetune.training.checkpoints import load_checkpoint


def test_rates_of_a_frozen_backbone_are_the_heads_alone(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    real = components.learning_rates

    def recorded(*args: object) -> dict[str, float]:
        seen.append(real(*args))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(components, "learning_rates", recorded)
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    # A linear head would be fitted, without a rate.
    assert main([*words, "freeze=backbone", "head=mlp", "trainer.epochs=1"]) == 0
    assert seen == [{"head": 0.003}]


@pytest.mark.parametrize("head", ["mlp", "cosine"])
def test_another_head_is_one_word(
    head: str, stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    assert main([*words, f"head={head}", "trainer.epochs=1"]) == 0
    weights = load_checkpoint(tmp_path / "stripes" / "a" / "checkpoints" / "best.ckpt")
    names = {name for name in weights["state_dict"] if name.startswith("classifier.head.")}
    assert names == {
        "mlp": {f"classifier.head.{n}" for n in
                ("hidden.weight", "hidden.bias", "linear.weight", "linear.bias")},
        "cosine": {"classifier.head.linear.weight"},
    }[head]  # fmt: skip


def test_local_weights_come_before_the_hub(
    stripes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    """`model=resnet18` is pretrained by default; with a file, nothing is downloaded."""
    backbone = components.create_backbone("resnet18")
    weights = tmp_path / "weights.pth"
    torch.save(backbone.state_dict(), weights)
    words = ["train", f"dataset.root={stripes}", f"runs={tmp_path}", "name=a", *quick]
    words = [word for word in words if not word.startswith("model")]
    words += ["model=resnet18", "model.image_size_px=32", f"model.weights={weights}"]
    assert main([*words, "freeze=backbone", "trainer.epochs=1"]) == 0
    trained = load_checkpoint(tmp_path / "stripes" / "a" / "checkpoints" / "probe.ckpt")
    for name, value in backbone.state_dict().items():
        assert torch.equal(trained["state_dict"][f"classifier.backbone.{name}"], value)
