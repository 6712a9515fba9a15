"""Write one file of resnet18 weights in each form that a peer takes, in float32.

    python benchmarks/peers/convert_weights.py resnet18.safetensors FOLDER

``FOLDER`` then serves as ``TORCH_HOME`` (torchvision, fastai, Ultralytics find what they would
download), as a local folder of timm's weights, and as a model folder of transformers.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import ResNet18_Weights, resnet18

TIMM_NAME = "resnet18.tv_in1k"


def main(source: str, target: str) -> None:
    """Convert; an incomplete file is refused."""
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(source).items()
    }
    resnet18().load_state_dict(weights, strict=True)
    timm.create_model("resnet18").load_state_dict(weights, strict=True)
    folder = Path(target)
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(weights, hub / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    cfg = timm.get_pretrained_cfg(TIMM_NAME).to_dict()
    config = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "timm_wrapper"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
