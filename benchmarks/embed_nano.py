"""Take the backbone of a run of `make pretrain` as the embedded weights of `nano`.

    .venv/bin/python benchmarks/embed_nano.py runs/latest

Writes finetune/models/nano.safetensors, in half precision.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune.exports.bundle import load_model
from finetune.models.backbones import NANO, NANO_WEIGHTS


def main() -> None:
    """Write the file, and its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    model = load_model(parser.parse_args().run)
    if model.description.backbone.name != NANO:
        raise SystemExit(f"run: got a {model.description.backbone.name}, expected {NANO}.")
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.classifier.backbone.state_dict().items()
    }
    strange = [name for name, value in state.items() if not torch.isfinite(value.float()).all()]
    if strange:
        raise SystemExit(f"run: {strange[0]} has values beyond half precision.")
    save_file(state, NANO_WEIGHTS, metadata={"format": "pt"})
    NANO_WEIGHTS.chmod(0o644)
    print(f"{NANO_WEIGHTS.name}: {NANO_WEIGHTS.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
