import io
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

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


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, data, *more):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *more,
            chunk(b"IDAT", data),
            chunk(b"IEND", b""),
        ]
    )


def grey(values, **options):
    """Decode one row of values, and check that it is grey."""
    image = decode_image(save(np.array([values], **options), "TIFF"))
    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 0], image[..., 2])
    return image[0, :, 0].tolist()


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_colour_models(mode):
    black_to_white = Image.new("RGB", (30, 10), "white")
    black_to_white.paste("black", (0, 0, 15, 10))
    image = decode_image(save(black_to_white.convert(mode), "TIFF"))
    assert image[:, :15].max() <= 2
    assert image[:, 15:].min() >= 253


def test_cmyk_jpeg():
    image = decode_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(image[4, 4].astype(int) - [255, 0, 0]).max() < 8


def test_16_bit_uses_the_full_range_whatever_the_image():
    values = [0, 128, 129, 257, 4095, 32768, 65535]
    expected = [0, 0, 1, 1, 16, 128, 255]
    assert grey(values, dtype=np.uint16) == expected
    assert grey(values[:5], dtype=np.uint16) == expected[:5]
    assert decode_image(save(np.array([values], dtype=np.uint16)))[0, :, 0].tolist() == expected
    big_endian = Image.frombytes("I;16B", (7, 1), np.array(values, ">u2").tobytes())
    assert decode_image(save(big_endian, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.25], [0, 64]),
        ([0.0, 1.5, 255.0], [0, 2, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([100.0, 300.0], [0, 255]),
        ([-5.0, -5.0], [0, 0]),
        ([700.0, 700.0], [0, 0]),
        ([-3e38, 3e38], [0, 255]),
    ],
)
def test_float(values, expected):
    assert grey(values, dtype=np.float32) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 255]),
        ([0, 7, 255], [0, 7, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([-(2**31), 2**31 - 1], [0, 255]),
    ],
)
def test_32_bit_integers(values, expected):
    assert grey(values, dtype=np.int32) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    with pytest.raises(ImageError, match="not finite"):
        decode_image(save(np.array([[0, value]], dtype=np.float32), "TIFF"))


def test_alpha_is_flattened_on_white():
    row = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 102, 255)):
        row.putpixel((x, 0), (100, 0, 50, alpha))
    expected = [[255, 255, 255], [193, 153, 173], [100, 0, 50]]
    assert decode_image(save(row))[0].tolist() == expected
    assert decode_image(save(row, "TIFF"))[0].tolist() == expected
    assert decode_image(save(row, "WEBP", lossless=True))[0].tolist() == expected
    light = row.convert("LA")
    values = decode_image(save(light))[0, :, 0].tolist()
    assert values == [255, round(0.4 * light.getpixel((1, 0))[0] + 153), light.getpixel((2, 0))[0]]


def test_transparent_colours_become_white():
    levels = np.array([[0, 100, 200]], dtype=np.uint8)
    white = [0, 255, 200]
    image = Image.fromarray(levels)
    assert decode_image(save(image, transparency=100))[0, :, 2].tolist() == white
    rgb = save(image.convert("RGB"), transparency=(100, 100, 100))
    assert decode_image(rgb)[0, :, 0].tolist() == white
    palette = image.convert("P")
    index = palette.getpixel((1, 0))
    assert decode_image(save(palette, transparency=index))[0, :, 1].tolist() == white
    assert decode_image(save(palette, "GIF", transparency=index))[0, :, 1].tolist() == white
    alphas = bytes(0 if i == index else 255 for i in range(256))
    assert decode_image(save(palette, transparency=alphas))[0, :, 1].tolist() == white
    assert decode_image(save(image.convert("1"), transparency=0)).min() == 255
    deep = save(np.array([[0, 100, 51400]], dtype=np.uint16), transparency=100)
    assert decode_image(deep)[0, :, 0].tolist() == white


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


def test_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(30_000, 30_000, 8, 0, zlib.compress(bytes(30_001 * 100))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(ImageError, match="30000 x 30000 pixels are 900 megapixels, expected at mo"):
        decode_image(path)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert read_header(path).width_px == 30_000


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
        (b"<html></html>", "begins with b'<html>"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "expected one of AVIF, BMP, GIF, JP",
        ),
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


def test_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(save(RGB))
    assert np.array_equal(decode_image(path), RGB)


def mutate(data, generator):
    data = bytearray(data)
    if generator.random() < 0.2:
        return bytes(data[: generator.randrange(len(data))])
    for _ in range(generator.choice([1, 2, 5, 20])):
        place = generator.randrange(len(data) if generator.random() < 0.5 else min(200, len(data)))
        match generator.randrange(3):
            case 0:
                data[place] = generator.choice([0, 255, generator.randrange(256)])
            case 1:
                del data[place : place + 3]
            case 2:
                data[place:place] = generator.randbytes(3)
    return bytes(data)


def test_a_thousand_damaged_files_raise_nothing_else(capfd):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), dtype=np.uint8)))
    formats = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")
    originals = [save(image, name, exif=exif) for name in formats]
    originals += [save(image.convert("P"), name, transparency=3) for name in ("PNG", "GIF")]
    originals += [save(image.convert("RGBA"), "PNG"), save(image, "BMP")]
    originals += [save(image, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg")]
    originals += [save(image.convert("F"), "TIFF"), save(image.convert("CMYK"), "JPEG")]
    originals += [
        save(image, name, save_all=True, append_images=[image]) for name in ("PNG", "GIF")
    ]
    generator = random.Random(0)
    refused = []
    for index in range(1000):
        data = mutate(originals[index % len(originals)], generator)
        try:
            decoded = decode_image(data, max_megapixels=20)
        except ImageError as error:
            refused.append(str(error))
        else:
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3
    assert 200 < len(refused) < 1000
    assert not [message for message in refused if "\n" in message]
    # libtiff writes to the standard error by itself.
    capfd.readouterr()


def test_warning_filters_are_as_before_also_with_threads():
    invalid_apng = png(1, 1, 8, 0, zlib.compress(b"\0\0"), chunk(b"acTL", struct.pack(">II", 0, 0)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(decode_image, [invalid_apng, save(RGB)] * 200))
    assert len(images) == 400
    assert warnings.filters == before
    # Pillow does warn of this file, so the above shows something.
    with pytest.warns(UserWarning, match="Invalid APNG"):
        PngImagePlugin.PngImageFile(io.BytesIO(invalid_apng))


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
