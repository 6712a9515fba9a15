"""PNG files in URLs hold what was drawn."""

import base64
import io

import numpy as np
import PIL.Image
import torch

from finetune.serving.pictures import heat_url, image_url


def _read(url: str) -> PIL.Image.Image:
    kind, content = url.split(",", 1)
    assert kind == "data:image/png;base64"
    return PIL.Image.open(io.BytesIO(base64.b64decode(content)))


def test_an_image_comes_back_as_it_was() -> None:
    pixels = torch.randint(0, 256, (1, 3, 9, 9), generator=torch.Generator().manual_seed(0))
    back = np.asarray(_read(image_url(pixels.float())))
    assert (back == pixels[0].permute(1, 2, 0).numpy()).all()


def test_heat_is_transparent_at_0_and_brighter_and_more_opaque_towards_1() -> None:
    drawn = np.asarray(_read(heat_url(torch.linspace(0, 1, 50).expand(2, 50))))
    assert drawn.shape == (2, 50, 4)
    assert drawn[0, 0, 3] == 0
    assert drawn[0, -1, 3] == 255
    luma = drawn[0, :, :3].astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > 0).all()
    assert (np.diff(drawn[0, :, 3].astype(int)) > 0).all()
