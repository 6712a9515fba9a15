"""DICOM to uint8 RGB with pydicom, by the table at the top of :mod:`finetune.data.decode`.

Only the few tags listed here are read: private ones, overlays and the patient's name are skipped
unparsed, references to other files are not followed, and no setting of pydicom's is changed.

Source: DICOM PS3.3, C.7.6.3 (image pixels).
"""

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Jpeg2KImagePlugin, JpegImagePlugin

from finetune.data.formats.colour import grey_to_rgb
from finetune.data.formats.dicom_levels import apply_palette, scale_bits, to_grey
from finetune.data.formats.readers import READER_ERRORS
from finetune.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

_MAGIC_START = 128
_META_START = 132
# By number, as pydicom's reader wants them. Nested items are parsed only within these.
_META_TAGS = [
    0x00020002,  # MediaStorageSOPClassUID
    0x00020010,  # TransferSyntaxUID
]
_IMAGE_TAGS = [
    0x00280002,  # SamplesPerPixel
    0x00280004,  # PhotometricInterpretation
    0x00280006,  # PlanarConfiguration
    0x00280008,  # NumberOfFrames
    0x00280010,  # Rows
    0x00280011,  # Columns
    0x00280100,  # BitsAllocated
    0x00280101,  # BitsStored
    0x00280103,  # PixelRepresentation
    0x00281050,  # WindowCenter
    0x00281051,  # WindowWidth
    0x00281052,  # RescaleIntercept
    0x00281053,  # RescaleSlope
    0x00281056,  # VOILUTFunction
    *range(0x00281101, 0x00281104),  # RedPaletteColorLookupTableDescriptor, green, blue
    *range(0x00281201, 0x00281204),  # RedPaletteColorLookupTableData, green, blue
    0x00283000,  # ModalityLUTSequence
    0x00283010,  # VOILUTSequence
]
_PIXEL_DATA = 0x7FE00010
# What lies below is no image's: a megabyte of zeros would be 100,000 empty tags 0. The end is
# FloatPixelData.
_IMAGE_GROUPS = range(0x00080000, 0x7FE00008)
# Bytes; enough for icons and private blocks.
_MAX_DEFLATED_HEADER = 2**24

_ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


class DicomImage:
    """One DICOM file, its tags read and checked, its pixels not yet.

    Args:
        file: open at any place; it stays the caller's.

    Attributes:
        width: Columns; the names are those of a Pillow image.
        height: Rows.
        mode: PhotometricInterpretation and BitsStored, such as ``MONOCHROME2;12``.

    Raises:
        ImageError: pydicom is missing, or the file is none that can be decoded.
    """

    format = "DICOM"

    def __init__(self, file: BinaryIO) -> None:
        with _damage_is_named():
            self._file = file
            meta = _read_meta(file)
            self._start = file.tell()
            self._syntax = _transfer_syntax(meta)
            self._tags, _ = self._read(_MAX_DEFLATED_HEADER)
            _check_tags(self._tags, meta)
        self.width, self.height = self._tags.Columns, self._tags.Rows
        self.mode = f"{self._tags.PhotometricInterpretation};{self._tags.BitsStored}"

    def decode(self) -> npt.NDArray[np.uint8]:
        """Decode the pixels.

        Returns:
            ``[H, W, 3]`` RGB.

        Raises:
            ImageError: no pixels, fewer than promised, or no decoder for how they are compressed.
        """
        with _damage_is_named():
            decoder = _find_decoder(self._syntax)
            tags = self._add_pixels()
            if decoder.is_encapsulated:
                _check_frame(tags)
            pixels, photometric = _decode_pixels(decoder, tags)
            if photometric == "PALETTE COLOR":
                return apply_palette(pixels, tags)
            if photometric == "RGB":
                return scale_bits(pixels, tags.BitsStored)
            grey = to_grey(pixels, tags)
            return grey_to_rgb(255 - grey if photometric == "MONOCHROME1" else grey)

    def _read(self, max_deflated: int) -> tuple["Dataset", BinaryIO]:
        """Read the tags; return them and the file, which is then at the pixels."""
        file = self._file
        file.seek(self._start)
        if self._syntax.is_deflated:
            # Without an end, a megabyte can become a gigabyte.
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), max_deflated)
            file = io.BytesIO(inflated)
        return self._read_within(file, _IMAGE_GROUPS, _IMAGE_TAGS), file

    def _add_pixels(self) -> "Dataset":
        from pydicom.pixels.utils import get_expected_length

        expected = 0 if self._syntax.is_encapsulated else get_expected_length(self._tags)
        tags, file = self._read(_MAX_DEFLATED_HEADER + expected)
        start = file.tell()
        got = max(0, file.seek(0, io.SEEK_END) - start)
        if got < expected:
            raise ImageError(f"DICOM cut off: {got} bytes where the pixels need {expected}")
        file.seek(start)
        pixels = self._read_within(file, range(_PIXEL_DATA, _PIXEL_DATA + 1), [_PIXEL_DATA])
        if "PixelData" not in pixels:
            raise ImageError("DICOM without pixels, or with floating-point ones")
        tags.update(pixels)
        return tags

    def _read_within(self, file: BinaryIO, groups: range, tags: list[int]) -> "Dataset":
        """Read some tags up to the first that lies outside the groups."""
        from pydicom.filereader import read_dataset

        return read_dataset(
            file,
            self._syntax.is_implicit_VR,
            self._syntax.is_little_endian,
            stop_when=lambda tag, *_: int(tag) not in groups,
            specific_tags=list(tags),
        )


def is_dicom(start: bytes) -> bool:
    """Tell by a file's first 132 bytes."""
    return start[_MAGIC_START:_META_START] == b"DICM"


@contextmanager
def _damage_is_named() -> Iterator[None]:
    """Turn pydicom's errors into ours: their messages may quote the file, and so the patient."""
    try:
        from pydicom.errors import BytesLengthException
    except ImportError as error:
        raise ImageError("DICOM needs pydicom; pip install 'finetune[dicom]'") from error
    try:
        yield
    except (MemoryError, OSError):
        raise
    except (BytesLengthException, *READER_ERRORS) as error:
        raise ImageError(f"damaged DICOM ({type(error).__name__})") from error


def _read_meta(file: BinaryIO) -> "Dataset":
    from pydicom.filereader import read_dataset

    file.seek(_META_START)
    return read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, *_: tag >> 16 != 2,
        specific_tags=list(_META_TAGS),
    )


def _transfer_syntax(meta: "Dataset") -> "UID":
    syntax: UID | None = meta.get("TransferSyntaxUID")
    if not syntax or not syntax.is_transfer_syntax or syntax.is_private:
        got = _name(syntax) if syntax else "none"
        raise ImageError(f"DICOM of an unknown transfer syntax: {got}")
    return syntax


def _find_decoder(syntax: "UID") -> "Decoder":
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError(f"DICOM compressed as {syntax.name}, which is not supported") from error
    if not decoder.is_available:
        needed = ", ".join(item.split()[0] for item in decoder.missing_dependencies)
        raise ImageError(f"DICOM compressed as {syntax.name}; to read it, install one of {needed}")
    return decoder


def _name(uid: "UID") -> str:
    return uid.name if uid.is_valid else "an invalid UID"


def _check_tags(tags: "Dataset", meta: "Dataset") -> None:
    kind = meta.get("MediaStorageSOPClassUID")
    if "Rows" not in tags:
        got = _name(kind) if kind else "a report, or cut off"
        raise ImageError(f"DICOM without an image: {got}")
    for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored"):
        if not isinstance(tags.get(name), int) or tags[name].value < 1:
            raise ImageError(f"DICOM without {name}")
    frames = int(tags.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"DICOM of {frames} frames, expected one; save each as a file of its own")
    photometric, samples = tags.get("PhotometricInterpretation"), tags.SamplesPerPixel
    is_grey = photometric in _ONE_SAMPLE and samples == 1
    is_colour = photometric in _COLOUR and samples == 3
    if not (is_grey or is_colour):
        raise ImageError(
            f"DICOM of {str(photometric)[:16]!r} with {samples} samples per pixel, expected 1 of "
            f"{', '.join(_ONE_SAMPLE)}, or 3 of {', '.join(_COLOUR)}"
        )
    bits, most = tags.BitsAllocated, 32 if is_grey else 16 if photometric == "RGB" else 8
    if not tags.BitsStored <= bits <= most:
        raise ImageError(
            f"DICOM of {photometric} with {tags.BitsStored} bits in {bits}, expected at most {most}"
        )


def _check_frame(tags: "Dataset") -> None:
    """Refuse a JPEG that is larger than the tags around it say: it may be a bomb."""
    from pydicom.encaps import get_frame

    frame = get_frame(tags.PixelData, 0, number_of_frames=1)
    is_jpeg = frame.startswith(b"\xff\xd8")
    reader = JpegImagePlugin.JpegImageFile if is_jpeg else Jpeg2KImagePlugin.Jpeg2KImageFile
    try:
        image = reader(io.BytesIO(frame), "")
    except READER_ERRORS:
        return  # so Pillow will not decode it either
    if image.size != (tags.Columns, tags.Rows):
        raise ImageError(
            f"DICOM of {tags.Columns} x {tags.Rows} pixels holds a compressed image of "
            f"{image.width} x {image.height}"
        )


def _decode_pixels(decoder: "Decoder", tags: "Dataset") -> tuple[npt.NDArray[Any], str]:
    """Return ``[H, W]`` or ``[H, W, 3]``, and what its values mean."""
    try:
        # pydicom's annotation of the options is not of a keyword's type.
        options: dict[str, Any] = {"allow_excess_frames": False}
        pixels, properties = decoder.as_array(tags, index=0, **options)
    except READER_ERRORS as error:
        # Unlike the other messages of pydicom's, these quote no content, but an address in memory.
        reason = re.sub(r"^Unable to .* plugins:|<_io[^>]*>", "", " ".join(str(error).split()))
        raise ImageError(f"DICOM pixels cannot be decoded: {reason.strip()[:200]}") from error
    return pixels, str(properties["photometric_interpretation"])
