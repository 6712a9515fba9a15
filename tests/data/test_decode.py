import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from finetune.data.decode import ImageHeader, decode_image, read_header
from finetune.errors import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RED_BELOW_GREEN = np.array([[[0, 255, 0]], [[255, 0, 0]]], dtype=np.uint8)


def save(image, file_format="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, file_format, **options
    )
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats(file_format, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(save(RGB, file_format))
    image = decode_image(path)
    assert np.array_equal(image, RGB)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.array_equal(decode_image(path.read_bytes()), image)
    assert read_header(path) == ImageHeader(file_format, 7, 5, "RGB")


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats(file_format):
    smooth = np.kron(RGB, np.ones((16, 16, 1), dtype=np.uint8)) // 2 + 64
    image = decode_image(save(smooth, file_format))
    assert image.shape == smooth.shape
    assert np.abs(image.astype(int) - smooth).mean() < 15
    assert read_header(save(smooth, file_format)).format == file_format


def test_cmyk_jpeg():
    image = decode_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(image[4, 4].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(file_format, orientation):
    # As the tag's definition has it: where row 0 and column 0 of the stored image belong.
    row_0_is_last = orientation in (3, 4, 7, 8)
    stored = np.kron(RED_BELOW_GREEN, np.ones((16, 32, 1), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(save(stored, file_format, exif=exif)).astype(int)
    if orientation >= 5:
        assert image.shape == (32, 32, 3)
        image = image.transpose(1, 0, 2)
    first, last = (image[4:12].mean((0, 1)), image[20:28].mean((0, 1)))
    green, red = (last, first) if row_0_is_last and orientation < 5 else (first, last)
    if orientation in (6, 7):
        green, red = last, first
    if orientation in (5, 8):
        green, red = first, last
    assert green[1] - green[0] > 200
    assert red[0] - red[1] > 200


def test_damaged_exif_counts_as_upright():
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(save(np.kron(RGB, np.ones((8, 8, 1), np.uint8)), "JPEG", exif=exif))
    assert image.shape == (40, 56, 3)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame_of_an_animation(file_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"quality": 100} if file_format == "AVIF" else {}
    data = save(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    image = decode_image(data).astype(int)
    assert np.abs(image - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_half_a_file_is_refused(file_format):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = save(noise, file_format)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageError, match=r"damaged|cannot be read"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("min_side_px", "size"),
    [(None, 400), (1, 50), (50, 50), (51, 100), (100, 100), (101, 200), (200, 200), (201, 400)],
)
def test_a_large_jpeg_may_be_decoded_small(min_side_px, size):
    smooth = Image.linear_gradient("L").resize((600, 400))
    data = save(Image.merge("RGB", [smooth, smooth.rotate(180), smooth]), "JPEG", quality=95)
    small = decode_image(data, min_side_px=min_side_px)
    assert small.shape == (size, size * 3 // 2, 3)
    shrunk = decode_image(data).reshape(size, 400 // size, size * 3 // 2, 400 // size, 3)
    assert np.abs(small - shrunk.mean((1, 3))).max() < 4
    assert decode_image(save(smooth), min_side_px=min_side_px).shape == (400, 600, 3)


def test_a_jpeg_decoded_small_is_upright_and_never_below_what_was_asked_for():
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for mode in ("RGB", "L", "CMYK"):
            data = save(Image.new(mode, (333, 221)), "JPEG", exif=exif, progressive=True)
            shape = decode_image(data, min_side_px=55).shape
            assert shape == ((56, 84, 3) if orientation == 1 else (84, 56, 3))
    with pytest.raises(ImageError, match="333 x 221 pixels"):
        decode_image(data, min_side_px=55, max_megapixels=0.05)


def test_limit_is_ours_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = save(RGB)
    assert decode_image(data, max_megapixels=35e-6).shape == (5, 7, 3)
    with pytest.raises(ImageError, match=r"max_megapixels=3\.4e-05"):
        decode_image(data, max_megapixels=34e-6)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "begins with b'no image', expected one of AVIF, BMP, GIF, JPEG, "),
        (b"<html></html>", "this is HTML, SVG or other XML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "this is PostScript"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
    ],
)
def test_what_is_no_image(data, message):
    for function in (decode_image, read_header):
        with pytest.raises(ImageError, match=message):
            function(data)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        decode_image(tmp_path / "no.png")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        decode_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match="neither a file nor a folder"):
            decode_image(path)


def test_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(save(RGB))
    assert np.array_equal(decode_image(path), RGB)


def test_importing_changes_nothing_in_pillow():
    program = (
        "import warnings, numpy; from PIL import Image, ImageFile\n"
        "before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)\n"
        "import finetune.data.decode\n"
        "after = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)\n"
        "assert before == after"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif("FINETUNE_REAL_DATA" not in os.environ, reason="FINETUNE_REAL_DATA is not set")
def test_real_images_are_as_pillow_has_them():
    paths = sorted(Path(os.environ["FINETUNE_REAL_DATA"]).rglob("hymenoptera/**/*.jpg"))
    assert len(paths) > 100
    for path in paths[:100]:
        with Image.open(path) as image:
            assert np.array_equal(decode_image(path), np.asarray(image.convert("RGB")))
