"""``.pt2``: a graph of torch's operators that torch alone reads."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from finetune.exports.answering import read_pixels
from finetune.exports.description import check_description
from finetune.exports.runtimes import open_file
from finetune.exports.torch_export import load_torch_export

# What somebody has who deploys the file: torch, and nothing of ours.
FRESH = """
import json, sys
import torch
pictures = torch.load(sys.argv[1], weights_only=True)
extra = {"model.json": ""}
module = torch.export.load(sys.argv[2], extra_files=extra).module()
answers = [module(picture[None])[0].tolist() for picture in pictures]
answers.append(module(torch.stack([pictures[0]] * 3))[2].tolist())
others = {"finetune", "timm", "lightning", "torchvision", "albumentations", "PIL", "cv2"}
names = json.loads(extra["model.json"])["class_names"]
print(json.dumps({"answers": answers, "names": names, "ours": sorted(others & set(sys.modules))}))
"""


@pytest.mark.parametrize(
    ("task", "precision", "within"),
    [
        ("multiclass", "float32", 1e-4),
        ("multilabel", "float32", 1e-4),
        ("multiclass", "float16", 2e-2),
    ],
)
def test_the_file_answers_like_the_bundle(export_of, assert_alike, task, precision, within):
    model, path = export_of(".pt2", task, precision)
    answer, values = open_file(path, trust=True)
    assert_alike(answer, model, within=within)
    assert check_description(values, "") == model.description


def test_half_precision_is_half_the_size(export_of):
    whole, half = (export_of(".pt2", precision=p)[1] for p in ("float32", "float16"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size


def test_torch_alone_reads_it(export_of, photos, tmp_path):
    model, path = export_of(".pt2")
    pixels = [read_pixels(photo, 1) for photo in photos]
    torch.save([torch.from_numpy(image[0]) for image in pixels], tmp_path / "pictures.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "pictures.pt"), str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ours"] == []
    assert said["names"] == model.class_names
    answer, _ = load_torch_export(path)
    with torch.inference_mode():
        expected = [answer(torch.from_numpy(image))[0].numpy() for image in [*pixels, pixels[0]]]
    assert np.abs(np.array(said["answers"]) - np.array(expected)).max() <= 1e-5
