import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from finetune.data.preprocess import Preprocess
from finetune.errors import ConfigError

# TorchScript is deprecated, and still an export that needs no Python.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = ("crop", "pad", "squash")
INTERPOLATIONS = ("bilinear", "bicubic")


def make(mode="crop", interpolation="bilinear", size=32, crop_fraction=0.875, **changes):
    arguments = {"mean": MEAN, "std": STD, **changes}
    return Preprocess(size, mode, crop_fraction, interpolation, **arguments)


def noise(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 500), (500, 1), (32, 32), (37, 36), (75, 50), (51, 34), (8, 8), (1, 100_000)],
)
def test_scripted_is_bitwise_eager(mode, interpolation, height, width):
    eager = make(mode, interpolation)
    scripted = torch.jit.script(eager)
    images = noise(2, 3, height, width)
    resized = eager.resize(images)
    assert resized.shape == (2, 3, 32, 32)
    assert resized.dtype == torch.float32
    assert resized.min() >= 0
    assert resized.max() <= 255
    assert torch.equal(scripted.resize(images), resized)
    assert torch.equal(scripted(images), eager(images))
    assert torch.equal(scripted.normalise(resized), eager(images))


def test_scripted_survives_a_file():
    eager = make("pad", "bicubic")
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(eager), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert torch.equal(loaded(noise(3, 20, 30)), eager(noise(3, 20, 30)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 90), width=st.integers(1, 90), crop=st.sampled_from([0.875, 0.9, 1.0]))
def test_crop_is_torchvisions(interpolation, height, width, crop):
    if max(height, width) > 8 * min(height, width):
        height = width
    size = 24
    reference = v2.Compose(
        [
            v2.Resize(round(size / crop), v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(size),
        ]
    )
    images = noise(1, 3, height, width)
    resized = make("crop", interpolation, size, crop).resize(images)
    assert torch.equal(resized, reference(images.float()).clamp(0, 255))


def test_squash_and_normalise_are_torchvisions():
    images = noise(2, 3, 50, 70)
    squashed = v2.Resize((32, 32), antialias=True)(images.float())
    module = make("squash")
    assert torch.equal(module.resize(images), squashed)
    reference = v2.Normalize(MEAN, STD)(squashed / 255)
    torch.testing.assert_close(module(images), reference, rtol=0, atol=2e-6)


def test_pad_keeps_proportions_and_fills_with_the_mean():
    images = torch.full((1, 3, 10, 40), 255, dtype=torch.uint8)
    normalised = make("pad")(images)[0]
    assert torch.all(normalised[:, :12] == 0)
    assert torch.all(normalised[:, 20:] == 0)
    assert torch.all(normalised[:, 12:20] > 1)


def test_crop_keeps_the_centre_of_a_very_long_image():
    images = torch.zeros(1, 3, 2, 100_001, dtype=torch.uint8)
    images[..., 50_000] = 255
    columns = make("crop", size=64, crop_fraction=1.0).resize(images)[0, 0, 32]
    # One source pixel is 32 wide here, and lies around the centre.
    assert columns[31] > 250
    assert columns[32] > 250
    assert torch.equal(columns, columns.flip(0))


IDENTITY = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_grey_is_pillows_luma(dtype):
    images = noise(4, 3, 32, 32)
    images[0, :, 0] = torch.tensor([[255], [0], [0]])
    module = make("squash", color="grey", **IDENTITY)
    levels = module.normalise(images.to(dtype))
    assert levels.shape == images.shape
    assert levels.dtype == torch.float32
    for image, channels in zip(images, levels, strict=True):
        luma = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        expected = torch.from_numpy(np.array(luma)).float().expand(3, -1, -1)
        assert (channels - expected).abs().max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_grey_scripted_is_bitwise_eager(mode):
    module = make(mode, color="grey")
    assert module.state_dict() == {}
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    images = noise(2, 3, 40, 50)
    assert torch.equal(scripted(images), module(images))
    assert torch.equal(scripted.normalise(images), module.normalise(images))
    twin = Preprocess(**module.settings())
    assert torch.equal(twin(images), module(images))
    assert not torch.equal(make(mode)(images), module(images))


def test_a_grey_image_is_the_same_in_rgb_and_grey():
    images = noise(2, 1, 40, 50).expand(-1, 3, -1, -1)
    torch.testing.assert_close(make(color="grey")(images), make()(images), rtol=0, atol=2e-6)


def test_a_tint_says_nothing_in_grey():
    grey = noise(1, 1, 32, 32).float().expand(-1, 3, -1, -1) / 2
    # Blue takes from the luma what red adds to it.
    tint = torch.tensor([0.114, 0.0, -0.299]).view(1, 3, 1, 1) * 50
    module = make("squash", color="grey")
    torch.testing.assert_close(module(grey + tint), module(grey), rtol=0, atol=1e-5)
    assert not torch.allclose(make("squash")(grey + tint), make("squash")(grey), atol=1e-2)


def test_settings_of_an_older_model_mean_rgb():
    settings = make().settings()
    del settings["color"]
    assert Preprocess(**settings).color == "rgb"


def test_one_image_gets_a_batch_axis():
    images = noise(3, 20, 20)
    module = make()
    assert torch.equal(module(images), module(images.unsqueeze(0)))


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20), (2, 1, 20, 20), (2, 20, 20, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        make()(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(("mode", "interpolation"), list(itertools.product(MODES, INTERPOLATIONS)))
def test_settings_make_an_equal_module(mode, interpolation):
    module = make(mode, interpolation)
    twin = Preprocess(**module.settings())
    assert twin.settings() == module.settings()
    assert torch.equal(twin(noise(3, 20, 50)), module(noise(3, 20, 50)))


def test_settings_are_json_and_a_copy():
    module = make()
    assert module.settings() == {
        "image_size_px": 32,
        "resize_mode": "crop",
        "crop_fraction": 0.875,
        "interpolation": "bilinear",
        "mean": list(MEAN),
        "std": list(STD),
        "color": "rgb",
    }
    module.settings()["mean"].clear()
    assert len(module.settings()["mean"]) == 3


def test_state_dict_is_empty_and_buffers_move():
    module = make()
    assert module.state_dict() == {}
    assert module.to(torch.float64).mean_255.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "image_size_px: got 0"),
        ({"mode": "pda"}, "Did you mean `pad`"),
        ({"interpolation": "cubic"}, "Did you mean `bicubic`"),
        ({"crop_fraction": 0}, "crop_fraction: got 0"),
        ({"crop_fraction": 1.1}, r"crop_fraction: got 1.1"),
        ({"crop_fraction": float("nan")}, r"crop_fraction: got nan"),
        ({"mean": (0.5,)}, "mean: got"),
        ({"std": (0.5, 0.5, 0.0)}, "std: got"),
        ({"color": "gray"}, "Did you mean `grey`"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("height", "width"), [(500, 1), (300, 2), (64, 1), (90, 5)])
def test_a_very_tall_image_is_a_very_wide_one_on_its_side(interpolation, height, width):
    preprocess = make("pad", interpolation, size=32)
    tall = noise(1, 3, height, width)
    turned = preprocess.resize(tall.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(preprocess.resize(tall), turned, atol=1e-3, rtol=0)
