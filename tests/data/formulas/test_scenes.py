"""Scenes: numbered images, the same in any process; what is in them has a name."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.formulas.scenes import Scenes

KINDS = ("fractals", "contours", "textures", "scenes")
FEW = {"num_fractals": 7, "num_contours": 7, "num_textures": 7}


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_those_of_the_kind(kind):
    names = Scenes(kind, **FEW).class_names
    assert len(set(names)) == len(names) == (21 if kind == "scenes" else 7)
    if kind != "scenes":
        assert all(name.startswith(kind[:-1]) for name in names)


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(0, 2**31), st.integers(0, 1000))
def test_an_image_is_a_function_of_seed_and_number(kind, index, seed):
    image, labels = Scenes(kind, side_px=32, seed=seed, **FEW).draw(index)
    again, same = Scenes(kind, side_px=32, seed=seed, **FEW).draw(index)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, again)
    assert labels == same == tuple(sorted(set(labels)))
    assert set(labels) <= set(Scenes(kind, **FEW).class_names)
    assert 1 <= len(labels) <= (7 if kind == "scenes" else 1)
    assert image.std() > 1
    other, _ = Scenes(kind, side_px=32, seed=seed, **FEW).draw(index + 1)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_appears(kind):
    scenes = Scenes(kind, side_px=16, **FEW)
    seen = {name for index in range(300) for name in scenes.draw(index)[1]}
    assert seen == set(scenes.class_names)


def test_another_process_draws_the_same():
    code = (
        "from finetune.data.formulas.scenes import Scenes; import hashlib\n"
        "print(hashlib.sha256(Scenes('scenes').draw(17)[0].tobytes()).hexdigest())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1] != ""
