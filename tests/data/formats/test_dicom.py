import io
import logging
import random
import re
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from finetune.data.decode import ImageHeader, decode_image, read_header
from finetune.errors import ImageError

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100


def dicom(pixels, *, syntax=ExplicitVRLittleEndian, data=None, storage=CTImageStorage, **tags):
    """Write a DICOM file; ``pixels`` gives the size and type, ``data`` may replace its bytes."""
    dataset = FileDataset(None, {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = storage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PatientName = "Secret^Name"
    dataset.add_new(0x00091010, "LO", "a private tag")
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if data is None else data
    if content is not False:
        dataset.add_new(0x7FE00010, "OW" if pixels.itemsize > 1 else "OB", content)
        dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def grey(*args, **tags):
    image = decode_image(dicom(*args, **tags))
    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 0], image[..., 2])
    return image[..., 0]


def lut(entries, *, first=0, bits=16):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new(0x00283006, "US", entries)
    return [item]


def jpeg(image, file_format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_without_a_window_its_own_range_is_shown(tmp_path):
    path = tmp_path / "scan.jpg"
    path.write_bytes(dicom(RAMP, BitsStored=12))
    image = decode_image(path)
    assert image.shape == (3, 4, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.array_equal(image[..., 0], np.rint(RAMP / 1100 * 255))
    assert read_header(path) == ImageHeader("DICOM", 4, 3, "MONOCHROME2;12")
    assert np.array_equal(decode_image(path.read_bytes()), image)
    assert grey(RAMP * 0 + 7).max() == 0


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_every_uncompressed_syntax(syntax):
    expected = grey(RAMP)
    assert np.array_equal(grey(RAMP, syntax=syntax), expected)
    signed = (RAMP.astype(np.int16) - 600) * 2
    tables = {"VOILUTSequence": lut([0, 65535, 0], first=-1), "WindowCenter": 5, "WindowWidth": 9}
    assert np.array_equal(grey(signed, syntax=syntax), expected)
    shown = grey(signed, syntax=syntax, **tables)
    assert np.array_equal(shown, np.where(signed == 0, 255, 0))
    rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(dicom(rgb, syntax=syntax)), rgb)


def test_monochrome1_is_inverted():
    window = {"WindowCenter": 300, "WindowWidth": 200}
    for tags in ({}, window, {"VOILUTSequence": lut(list(range(1200)))}):
        one = grey(RAMP, PhotometricInterpretation="MONOCHROME1", **tags)
        assert np.array_equal(one, 255 - grey(RAMP, **tags))


def test_palette():
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    table = np.array([[10, 20, 30, 40], [255, 0, 128, 1], [0, 0, 7, 255]], dtype=np.uint8)
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 1, 8]
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    pixels = np.array([[0, 1, 2], [3, 4, 200]], dtype=np.uint8)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        image = decode_image(dicom(pixels, syntax=syntax, **tags))
        assert np.array_equal(image, table.T[[[0, 0, 1], [2, 3, 3]]])


def test_colour():
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    assert np.array_equal(decode_image(dicom(rgb, data=planes, PlanarConfiguration=1)), rgb)
    deep = decode_image(dicom(rgb.astype(np.uint16) * 257))
    assert np.array_equal(deep, rgb)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    turned = decode_image(dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(turned.astype(int) - rgb).max() <= 3
    assert read_header(dicom(rgb)).mode == "RGB;8"


def test_compressed():
    smooth = Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 9)
    level = np.asarray(smooth)
    for syntax, data in (
        (JPEGBaseline8Bit, jpeg(smooth, quality=95)),
        (JPEG2000Lossless, jpeg(smooth, "JPEG2000", no_jp2=True)),
    ):
        image = grey(level, syntax=syntax, data=encapsulate([data]))
        assert np.abs(image.astype(int) - grey(level)).max() < 25
    slope = Image.linear_gradient("L").resize(smooth.size)
    colour = Image.merge(
        "RGB",
        [slope, slope.rotate(180), slope.transpose(Image.Transpose.ROTATE_90).resize(smooth.size)],
    )
    for photometric in ("YBR_FULL_422", "RGB"):
        data = encapsulate([jpeg(colour, quality=95)])
        tags = {"PhotometricInterpretation": photometric, "data": data}
        image = decode_image(dicom(np.asarray(colour), syntax=JPEGBaseline8Bit, **tags))
        assert np.abs(image.astype(int) - np.asarray(colour)).mean() < 6
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    dataset.compress(RLELossless)
    file = io.BytesIO()
    dataset.save_as(file)
    assert np.array_equal(decode_image(file.getvalue())[..., 0], grey(RAMP))


def as_pydicom_shows_it(path):
    """Return what pydicom makes of a file: None, or ``[H, W]`` or ``[H, W, 3]`` in 0..255."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path)
            pixels = dataset.pixel_array
        except Exception:  # noqa: BLE001 - it raises almost any
            return None
        photometric = dataset.PhotometricInterpretation
        if photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
        if not photometric.startswith("MONOCHROME"):
            return pixels / (257 if pixels.dtype == np.uint16 else 1)
        values = apply_modality_lut(pixels, dataset).astype(float)
        low, high = values.min(), values.max()
        if "WindowWidth" in dataset:
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            values = apply_windowing(values, dataset)
        shown = (values - low) / ((high - low) or 1) * 255
        return 255 - shown if photometric == "MONOCHROME1" else shown


def test_the_samples_of_pydicom_look_as_with_pydicom():
    samples = [
        path
        for path in sorted((Path(pydicom.__file__).parent / "data").rglob("*"))
        if path.is_file() and path.read_bytes()[128:132] == b"DICM"
    ]
    refusals = {}
    for path in samples:
        expected = as_pydicom_shows_it(path)
        try:
            image = decode_image(path)
        except ImageError as error:
            refusals[path] = (str(error), expected is None)
        else:
            expected = expected if expected.ndim == 3 else expected[..., None]
            assert np.abs(image - expected).max() <= 0.51, path.name
    print(f"{len(samples) - len(refusals)} decoded, {len(refusals)} refused")
    assert len(samples) - len(refusals) > 30
    for message, is_refused_by_pydicom in refusals.values():
        assert is_refused_by_pydicom or re.search("frames, expected one|RGB with 32 bits", message)


def refused(data, **options):
    with pytest.raises(ImageError) as info:
        decode_image(data, **options)
    assert "\n" not in str(info.value)
    assert "Secret" not in str(info.value)
    return str(info.value)


def test_what_is_refused_and_why():
    assert "DICOM of 7 frames, expected one" in refused(dicom(RAMP, NumberOfFrames=7))
    report = "1.2.840.10008.5.1.4.1.1.88.11"
    directory = "1.2.840.10008.1.3.10"
    for storage, name in ((report, "Basic Text SR Storage"), (directory, "Directory Storage")):
        data = dicom(RAMP, data=False, storage=storage, Rows=None, Columns=None)
        assert f"DICOM without an image: {name}" in refused(data).replace("Media Storage ", "")
    assert "cut off: 0 bytes where the pixels need 24" in refused(dicom(RAMP, data=False))
    frame = encapsulate([b"\xff\xd8\xff" + b"\0" * 50])
    message = refused(dicom(RAMP, syntax=JPEGLosslessSV1, data=frame))
    assert "JPEG Lossless, Non-Hierarchical, First-Order Prediction" in message
    assert "gdcm" in message
    assert "MPEG2" in refused(dicom(RAMP, syntax=MPEG2MPML, data=frame))
    assert "'HSV'" in refused(dicom(RAMP, PhotometricInterpretation="HSV"))
    assert "VOILUTFunction 'CUBIC'" in refused(
        dicom(RAMP, VOILUTFunction="CUBIC", WindowCenter=1, WindowWidth=9)
    )
    assert "not finite" in refused(dicom(RAMP, RescaleSlope="1e308", RescaleIntercept="9e307"))
    assert "23 vs 24 bytes" in refused(dicom(RAMP)[:-1])
    assert "unknown transfer syntax: none" in refused(b"\0" * 128 + b"DICM")


def test_size_is_judged_before_the_pixels():
    assert "max_megapixels=1e-06" in refused(dicom(RAMP), max_megapixels=1e-6)
    huge = dicom(RAMP, Rows=65535, Columns=65535)
    assert "65535 x 65535 pixels are 4295 megapixels" in refused(huge)
    assert "cut off: 36 bytes where the pixels need" in refused(huge, max_megapixels=1e9)
    bomb = encapsulate([jpeg(Image.new("L", (3000, 2000)))])
    message = refused(dicom(RAMP.astype(np.uint8), syntax=JPEGBaseline8Bit, data=bomb))
    assert "4 x 3 pixels holds a compressed image of 3000 x 2000" in message


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counter")
def test_a_deflated_bomb_stays_small(tmp_path):
    deflated, plain = dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian), dicom(RAMP)
    tags, start = plain[meta_end(plain) :], meta_end(deflated)
    size = 400_000_000
    private = b"\t\0\x10\0OB\0\0" + size.to_bytes(4, "little")
    for name, before, after in (("pixels", tags, b""), ("tags", private, tags)):
        data = deflated[:start] + pack(before) + pack(bytes(10**6)) * 400 + pack(after) + b"\3\0"
        assert len(data) < 2_000_000
        (tmp_path / name).write_bytes(data)
    (tmp_path / "small").write_bytes(deflated)
    program = """
import re, sys
from pathlib import Path
from finetune.data.decode import decode_image
from finetune.errors import ImageError

def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for name in ("small", "pixels", "tags"):
    before = peak_kb()
    try:
        print(name, decode_image(Path(sys.argv[1]) / name).shape)
    except ImageError as error:
        print(name, error)
    growth = peak_kb() - before
    assert name == "small" or growth < 100_000, (name, growth)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    small, pixels, tags = result.stdout.splitlines()
    assert small == "small (3, 4, 3)"
    assert pixels == "pixels (3, 4, 3)"
    assert "without an image" in tags


def pack(data):
    """Deflate into blocks that may stand anywhere."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def meta_end(data):
    return 144 + int.from_bytes(data[140:144], "little")


def test_without_pydicom_the_message_says_what_to_install(monkeypatch):
    data = dicom(RAMP)
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert refused(data) == "DICOM needs pydicom; pip install 'finetune[dicom]'"


def test_pydicom_is_neither_heard_nor_changed(caplog):
    """pydicom warns of more pixels than there should be."""
    data = dicom(RAMP, data=RAMP.tobytes() + b"\0" * 10)
    log = logging.getLogger("pydicom")
    before = dict(vars(pydicom.config)), list(warnings.filters), log.level, log.propagate
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(decode_image, [data] * 40))
    assert all(np.array_equal(image, images[0]) for image in images)
    after = dict(vars(pydicom.config)), list(warnings.filters), log.level, log.propagate
    assert before == after
    assert not caplog.records
    # pydicom does warn of this file, so the above shows something.
    with pytest.warns(UserWarning, match="excess padding"):
        assert pydicom.dcmread(io.BytesIO(data)).pixel_array.shape == (3, 4)


def test_importing_decode_does_not_import_pydicom():
    program = "import sys, finetune.data.decode; assert 'pydicom' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def mutate(data, generator):
    data = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        # The preamble means nothing.
        place = generator.randrange(126, len(data))
        match generator.randrange(5):
            case 0 | 1:
                data[place] = generator.choice([0, 255, generator.randrange(256)])
            case 2:
                data[place:place] = generator.randbytes(2)
            case 3:
                del data[place : place + 2]
            case 4 if generator.random() < 0.3:
                del data[place:]
                break
    return bytes(data) + b"\0" * max(0, 127 - len(data))


def test_damaged_files_raise_nothing_else():
    smooth = Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 9)
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = b"\1\2\3\4"
    window = {"WindowCenter": [500, 2], "WindowWidth": [900, 3]}
    tables = {"ModalityLUTSequence": lut(list(range(99))), "VOILUTSequence": lut(list(range(99)))}
    jpeg_2000 = encapsulate([jpeg(smooth, "JPEG2000", no_jp2=True)])
    level = np.asarray(smooth)
    originals = [
        dicom(RAMP, RescaleSlope=2, RescaleIntercept=-100, **window),
        dicom(RAMP, syntax=ImplicitVRLittleEndian, **window),
        dicom(RAMP, syntax=ExplicitVRBigEndian),
        dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian),
        dicom(RAMP, **tables),
        dicom(RAMP, syntax=ImplicitVRLittleEndian, **tables),
        dicom(level, **palette),
        dicom(level, syntax=JPEGBaseline8Bit, data=encapsulate([jpeg(smooth)])),
        dicom(level, syntax=JPEG2000Lossless, data=jpeg_2000),
    ]
    generator, decoded, reasons = random.Random(0), 0, []
    for index in range(1800):
        data = mutate(originals[index % len(originals)], generator)
        try:
            image = decode_image(data, max_megapixels=20)
        except ImageError as error:
            reasons.append(str(error))
        else:
            decoded += 1
            assert image.dtype == np.uint8
            assert image.ndim == 3
    print(f"{decoded} decoded, {len(reasons)} refused")
    assert min(decoded, len(reasons)) > 300
    assert not [reason for reason in reasons if "\n" in reason or len(reason) > 300]
