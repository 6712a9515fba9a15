"""Stored DICOM values to what a screen shows: lookup tables, windows, palettes.

pydicom has such functions too. Its windows invert an image whose rescale slope is negative, and
its tables of 8 bits take a value of 256 for 0.

Source: DICOM PS3.3, C.7.6.3.1.5 (palettes), C.11.1 (modality LUT), C.11.2 (VOI LUT and window).
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.data.formats.colour import find_range, round_to_uint8, stretch
from finetune.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset


def to_grey(pixels: npt.NDArray[Any], tags: "Dataset") -> npt.NDArray[np.uint8]:
    """Rescale and window by the tags; where they give no window, stretch.

    Args:
        pixels: ``[H, W]``, as stored.
        tags: of the image.

    Returns:
        ``[H, W]``, larger is brighter; MONOCHROME1 is not inverted here.

    Raises:
        ImageError: values that are not finite, or a table or window of an unknown kind.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = _rescale(pixels.astype(np.float64), tags)
    find_range(values)
    if tags.get("VOILUTSequence"):
        item = tags.VOILUTSequence[0]
        return scale_bits(_apply_lut(values, item), item.LUTDescriptor[2])
    center, width = (_first(tags.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(tags.get("VOILUTFunction") or "LINEAR").upper()
    is_wide = width >= 1 if function == "LINEAR" else width > 0
    if is_wide and math.isfinite(center) and math.isfinite(width):
        return round_to_uint8(255 * apply_window(values, center, width, function))
    return stretch(values)


def apply_window(
    values: npt.NDArray[np.float64], center: float, width: float, function: str
) -> npt.NDArray[np.float64]:
    """Map a window to 0..1: what lies below it is 0, what lies above is 1.

    Args:
        values: any shape, after rescaling.
        center: middle of the window, in the unit of ``values``.
        width: > 0; for ``LINEAR`` >= 1.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Raises:
        ImageError: another function.

    Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
    """
    match function:
        case "LINEAR" if width == 1:
            return (values > center - 0.5).astype(np.float64)
        case "LINEAR":
            return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
        case "LINEAR_EXACT":
            return np.clip((values - center) / width + 0.5, 0, 1)
        case "SIGMOID":
            return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)
        case _:
            raise ImageError(
                f"DICOM with VOILUTFunction {function[:16]!r}, expected one of LINEAR, "
                "LINEAR_EXACT, SIGMOID"
            )


def apply_palette(pixels: npt.NDArray[Any], tags: "Dataset") -> npt.NDArray[np.uint8]:
    """Give each stored value of ``[H, W]`` its colour.

    Returns:
        ``[H, W, 3]`` RGB.

    Raises:
        ImageError: no palette, or one in segments: a kilobyte of those can become a gigabyte.
    """
    if "RedPaletteColorLookupTableData" not in tags:
        raise ImageError("DICOM of PALETTE COLOR without a table, or with a segmented one")
    channels = []
    for name in ("Red", "Green", "Blue"):
        descriptor = tags[f"{name}PaletteColorLookupTableDescriptor"].value
        data = tags[f"{name}PaletteColorLookupTableData"].value
        channels.append(scale_bits(_look_up(pixels, tags, descriptor, data), descriptor[2]))
    return np.stack(channels, axis=2)


def scale_bits(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Bring 0..2^bits - 1 to 0..255."""
    return round_to_uint8(values * (255 / (2**bits - 1)))


def _rescale(values: npt.NDArray[np.float64], tags: "Dataset") -> npt.NDArray[np.float64]:
    if tags.get("ModalityLUTSequence"):
        return _apply_lut(values, tags.ModalityLUTSequence[0])
    slope, intercept = tags.get("RescaleSlope"), tags.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values
    return values * float(slope) + float(intercept)


def _apply_lut(values: npt.NDArray[np.float64], item: "Dataset") -> npt.NDArray[np.float64]:
    return _look_up(values, item, item.LUTDescriptor, item.LUTData)


def _look_up(
    values: npt.NDArray[Any], tags: "Dataset", descriptor: Any, data: Any
) -> npt.NDArray[np.float64]:
    """Take each value's entry; those beyond either end take the first or the last."""
    count, first, bits = (int(number) for number in descriptor)
    count = count or 2**16
    if not 1 <= bits <= 16:
        raise ImageError(f"DICOM with a lookup table of {bits} bits, expected 1 to 16")
    if isinstance(data, bytes):
        is_little_endian = tags.original_encoding[1]
        two_bytes = "<u2" if is_little_endian else ">u2"
        data = np.frombuffer(data, two_bytes if len(data) >= 2 * count else "u1")
    entries = np.atleast_1d(np.asarray(data, np.float64))[:count]
    places = np.clip(np.rint(values.astype(np.float64)) - first, 0, len(entries) - 1)
    found: npt.NDArray[np.float64] = np.take(entries, places.astype(np.intp))
    return found


def _first(value: Any) -> float:
    """Return the first of several windows; NaN for none."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return math.nan if value in (None, "") else float(value)
    return _first(value[0]) if len(value) else math.nan
