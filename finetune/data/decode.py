"""Bytes to uint8 RGB: the one decode policy of the project, with Pillow alone.

| input | becomes |
| --- | --- |
| EXIF orientation | applied; EXIF that cannot be read counts as upright |
| alpha, in any form | flattened on ``BACKGROUND`` (white) |
| animation | its first frame |
| 16-bit grey | divided by 257: the full range, whatever part of it an image uses |
| 32-bit integer or float, all values in 0..1 | times 255 |
| the same, all values in 0..255 | as they are |
| 32-bit integer, all values in 0..65535 | divided by 257 |
| 32-bit integer or float otherwise | its own minimum to 0, its maximum to 255 |
| CMYK, YCbCr, LAB, HSV, bilevel, palette | RGB; colour profiles are ignored |
| truncated, damaged, not finite, or too many pixels | refused |

A conversion to RGB by Pillow alone turns 16-bit grey white and float black.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from finetune.errors import ImageError

BACKGROUND = (255, 255, 255)

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}

# On 8,000 damaged files Pillow raised OSError, SyntaxError, ValueError, RuntimeError and
# DecompressionBombError; the others are what its parsers raise within, and turn into those.
_PILLOW_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says about itself before any pixel is decoded.

    Attributes:
        format: one of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP, by content, not by suffix.
        width_px: as stored, before EXIF orientation.
        height_px: as stored, before EXIF orientation.
        mode: Pillow's name of the pixel type, such as ``RGB``, ``L`` or ``I;16``.
    """

    format: str
    width_px: int
    height_px: int
    mode: str


def decode_image(source: Path | bytes, *, max_megapixels: float = 200) -> npt.NDArray[np.uint8]:
    """Decode the first frame of an image by the rules at the top of this module.

    Args:
        source: a file's path or its content.
        max_megapixels: more pixels than this, in millions, are refused before any is decoded.

    Returns:
        ``[H, W, 3]`` RGB, C-contiguous and writable.

    Raises:
        ImageError: the file cannot be read, is no image, is damaged, or is too large.
    """
    with _open(source) as image:
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            raise ImageError(
                f"{image.width} x {image.height} pixels are {megapixels:.4g} megapixels, "
                f"expected at most max_megapixels={max_megapixels:g}"
            )
        return image_to_rgb(image)


def image_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Turn an open Pillow image into ``[H, W, 3]`` RGB by the same rules as a file.

    Raises:
        ImageError: it holds values that are not finite.
    """
    image.load()
    return np.ascontiguousarray(_to_rgb(_upright(image)))


def read_header(source: Path | bytes) -> ImageHeader:
    """Read format, size and mode without decoding a pixel.

    Raises:
        ImageError: the file cannot be read, or its beginning is not that of an image.
    """
    with _open(source) as image:
        return ImageHeader(str(image.format), image.width, image.height, image.mode)


@contextmanager
def _open(source: Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """Open an image; whatever Pillow raises on damage, inside the block too, is an ImageError."""
    file: BinaryIO
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise ImageError(_describe(error)) from error
    try:
        # Image.open has a pixel limit of its own in a global of Pillow's, and would start
        # Ghostscript for an EPS file with the suffix .jpg.
        with file, _pillow_does_not_warn(), _find_reader(file)(file, "") as image:
            yield image
    except ImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise ImageError(_describe(error)) from error


def _find_reader(file: BinaryIO) -> type[ImageFile.ImageFile]:
    start = file.read(16)
    file.seek(0)
    name = _sniff(start)
    if name is None:
        got = "the file is empty" if not start else f"begins with {start[:8]!r}"
        raise ImageError(f"not an image: {got}, expected one of {', '.join(_READERS)}")
    return _READERS[name]


def _sniff(start: bytes) -> str | None:
    """Name the format that a file's first 16 bytes announce."""
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
    ):
        if start.startswith(magic):
            return name
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _PILLOW_ERRORS:
        return image
    # A damaged block can hold anything, even what has no hash.
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return _grey(_transparent_to_white(image, np.asarray(image) / 257.0))
    if image.mode in ("I", "F"):
        # A signalling NaN warns when it is cast.
        with np.errstate(invalid="ignore"):
            values = np.asarray(image).astype(np.float64)
        return _grey(_scale_to_255(values, image.mode))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, BACKGROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return np.array(flat)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _transparent_to_white(
    image: Image.Image, scaled: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Apply a PNG's one transparent grey value, which Pillow leaves to the caller."""
    transparent = image.info.get("transparency")
    return (
        scaled if transparent is None else np.where(np.asarray(image) == transparent, 255, scaled)
    )


def _scale_to_255(values: npt.NDArray[np.float64], mode: str) -> npt.NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("holds values that are not finite")
    if low >= 0 and high <= 1:
        return values * 255
    if low >= 0 and high <= 255:
        return values
    if mode == "I" and low >= 0 and high <= 65535:
        return values / 257
    return (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)


def _grey(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.repeat(np.rint(values).astype(np.uint8)[:, :, None], 3, axis=2)


def _describe(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"damaged or not supported: {reason}"


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_state = warnings.catch_warnings()


@contextmanager
def _pillow_does_not_warn() -> Iterator[None]:
    """Keep Pillow's remarks on metadata from the user, or from becoming errors.

    Python's warning filters belong to the process. If each thread saved and restored them, two
    threads could restore each other's: the first one in saves them and the last one out restores.
    """
    global _quiet_users, _quiet_state
    with _quiet_lock:
        _quiet_users += 1
        if _quiet_users == 1:
            _quiet_state = warnings.catch_warnings()
            _quiet_state.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                _quiet_state.__exit__(None, None, None)
