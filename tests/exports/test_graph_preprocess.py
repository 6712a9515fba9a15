"""Preprocessing as a graph gives the numbers of preprocessing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.preprocess import Preprocess
from finetune.exports.graph_preprocess import GraphPreprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = ["crop", "pad", "squash"]
INTERPOLATIONS = ["bilinear", "bicubic"]

sides = st.integers(1, 1500)


def noise(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (batch, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


@settings(max_examples=60)
@given(
    height=sides,
    width=sides,
    size=st.integers(2, 80),  # to 1 x 1, torch's own antialiasing is wrong
    mode=st.sampled_from(MODES),
    interpolation=st.sampled_from(INTERPOLATIONS),
    color=st.sampled_from(["rgb", "grey"]),
    crop=st.floats(0.3, 1),
    seed=st.integers(0, 9),
)
def test_any_size_gives_the_numbers_of_preprocess(
    height, width, size, mode, interpolation, color, crop, seed
):
    preprocess = Preprocess(size, mode, crop, interpolation, MEAN, STD, color)
    graph = GraphPreprocess(preprocess)
    images = noise(height, width, seed)
    expected, found = preprocess.resize(images), graph.resize(images)
    assert found.shape == expected.shape == (1, 3, size, size)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-3
    # A deviation of 0.225 * 255 is 1.
    assert (graph(images) - preprocess(images)).abs().max() <= 1e-3 / (0.224 * 255) + 1e-6


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (1, 1),
        (1, 3000),
        (3000, 200),
        (2, 17),
        (33, 32),
        (32, 32),
        (37, 301),
        (301, 37),
        (1500, 1499),
    ],
)
def test_thin_tiny_and_exact_sizes(mode, interpolation, height, width):
    preprocess = Preprocess(32, mode, 0.875, interpolation, MEAN, STD)
    images = noise(height, width, batch=2)
    found = GraphPreprocess(preprocess)(images)
    assert (found - preprocess(images)).abs().max() <= 2e-5


def test_padding_is_the_mean_colour_and_so_0():
    found = GraphPreprocess(Preprocess(32, "pad", 1.0, "bilinear", MEAN, STD))(noise(64, 16))
    assert (found[..., :12] == 0).all()
    assert (found[..., 20:] == 0).all()
    assert (found[..., 12:20] != 0).any()


def test_the_cubic_kernel_stays_within_0_and_255():
    images = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    images[..., 20:] = 255
    found = GraphPreprocess(Preprocess(64, "squash", 1.0, "bicubic", MEAN, STD)).resize(images)
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_column_is_treated_like_a_row(interpolation):
    preprocess = Preprocess(32, "pad", 1.0, interpolation, MEAN, STD)
    column = noise(300, 1)
    found = GraphPreprocess(preprocess)(column)
    assert (found.transpose(2, 3) - preprocess(column.transpose(2, 3))).abs().max() <= 2e-5
