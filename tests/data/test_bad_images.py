"""Odd and damaged files: right pixels or a reason, never a crash, never another image's pixels."""

import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from finetune.data.audit import audit_folder
from finetune.data.decode import decode_image, read_header
from finetune.data.discover import discover_folder
from finetune.errors import ImageError

COLOURS = np.array(
    [[[200, 30, 30], [30, 200, 30], [30, 30, 200]], [[220, 220, 30], [30, 30, 30], [230, 230, 230]]]
)
PICTURE = np.kron(COLOURS, np.ones((16, 16, 1), dtype=int)).astype(np.uint8)
GREY = PICTURE[..., 0]


def save(image, file_format="PNG", **options):
    if file_format in ("JPEG", "MPO"):
        options = {"quality": 95, "subsampling": 0, **options}
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, file_format, **options
    )
    return file.getvalue()


def picture(mode="RGB"):
    return Image.fromarray(PICTURE).convert(mode)


def solid(*colour, size=(16, 16)):
    return np.full((size[1], size[0], 3), colour, dtype=np.uint8)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, rows, *more, interlaced=False):
    """Write a PNG; ``rows`` are the bytes of each row without its filter, or all compressed."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    is_packed = isinstance(rows, bytes)
    data = rows if is_packed else zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def interlaced_png():
    rows = []
    for y, x, down, across in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):  # fmt: skip
        rows += [row.tobytes() for row in PICTURE[y::down, x::across]]
    return png(48, 32, 8, 2, rows, interlaced=True)


def run_length_bmp():
    pixels = b"".join(bytes([16, 2, 16, 0, 16, 1, 0, 0]) for _ in range(16))
    pixels += b"".join(bytes([16, 0, 16, 1, 16, 2, 0, 0]) for _ in range(16)) + b"\0\1"
    palette = bytes([30, 30, 200, 0, 30, 200, 30, 0, 200, 30, 30, 0])
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 48, 32, 1, 8, 1, len(pixels), 0, 0, 3, 3)
    return (
        b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels
    )


def tiff(order, entries, data):
    """Write a TIFF of one page: tag to value, all SHORT or LONG, and the pixels."""
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    is_tiled = 322 in entries
    entries = {**entries, 324 if is_tiled else 273: start, 325 if is_tiled else 279: len(data)}
    table = b"".join(
        struct.pack(order + "HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries)
    )
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    head = magic + struct.pack(order + "IH", 8, len(entries)) + table + b"\0" * 4
    return head + b"\0" * (start - len(head)) + data


def tiled_tiff():
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: 16, 323: 16}
    return tiff("<", tags, GREY[:16, 8:24].tobytes())


def ycck_jpeg():
    """Red: Pillow writes CMYK; the Adobe marker then says that the first three are YCbCr."""
    y, cb, cr = Image.new("RGB", (1, 1), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))
    data = save(Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, 0)), "JPEG")
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    return data[:place] + b"\2" + data[place + 1 :]


def turned(orientation, file_format="JPEG"):
    """Store the picture such that this EXIF orientation brings it upright."""
    # Where the definition of the tag puts row 0 and column 0 of what is stored.
    row_0, column_0 = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    pixels = PICTURE if row_0 in ("top", "bottom") else PICTURE.swapaxes(0, 1)
    pixels = pixels[:: -1 if row_0 in ("bottom", "right") else 1]
    pixels = pixels[:, :: -1 if column_0 in ("bottom", "right") else 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(np.ascontiguousarray(pixels), file_format, exif=exif)


def transparent():
    """The picture with its last column of blocks transparent; black below it, not white."""
    image = picture("RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 48, 32))
    return image


def on_white(pixels=PICTURE):
    return np.concatenate([pixels[:, :32], np.full((32, 16, 3), 255, dtype=np.uint8)], axis=1)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def odd_files():
    """Name to content and either the right pixels or a pattern for the reason."""
    jpeg, plain = save(PICTURE, "JPEG"), save(PICTURE)
    gif, webp, tif = (save(PICTURE, name) for name in ("GIF", "WEBP", "TIFF"))
    animated = {"save_all": True, "append_images": [Image.new("RGB", (48, 32))]}
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    nan = np.array([[0, np.nan]], dtype=np.float32)
    cut = "damaged or not supported: .*"
    idat = plain.index(b"IDAT")
    grey_png = save(GREY)
    palette = picture().quantize(6)
    la = Image.merge("LA", [transparent().convert("L"), transparent().getchannel("A")])
    light = np.array(picture("L"))
    return {
        # From the table of facts.
        "JPEG cut in half": (jpeg[: len(jpeg) // 2], cut + "[Tt]runcated"),
        "16-bit grey PNG": (save(ramp), grey([[0, 1, 128, 255]])),
        "float TIFF": (save((GREY / 255).astype(np.float32), "TIFF"), grey(GREY)),
        **{f"EXIF orientation {n}": (turned(n), PICTURE) for n in range(1, 9)},
        **{f"PNG with EXIF orientation {n}": (turned(n, "PNG"), PICTURE) for n in (3, 6)},
        "RGBA": (save(transparent()), on_white()),
        "LA": (save(la), on_white(grey(light))),
        "palette with tRNS": (
            save(palette, transparency=palette.getpixel((40, 0))),
            np.where(grey(np.asarray(palette) == palette.getpixel((40, 0))), 255, PICTURE),
        ),
        "PA, of a TIFF": (save(Image.merge("LA", la.split()), "TIFF"), on_white(grey(light))),
        "CMYK JPEG": (save(picture("CMYK"), "JPEG"), PICTURE),
        "L": (grey_png, grey(GREY)),
        "damaged PNG": (plain[:60] + b"\xff" * 20 + plain[80:], cut),
        "30,000 x 30,000 PNG": (
            png(30_000, 30_000, 8, 0, [bytes(30_000)] * 90),
            "30000 x 30000 pixels are 900 megapixels, expected at most .*max_megapixels=200",
        ),
        # Cut or damaged.
        "nothing": (b"", "the file is empty"),
        "PNG cut in half": (plain[: len(plain) // 2], cut),
        "GIF cut in half": (gif[: len(gif) // 2], cut),
        "WebP cut in half": (webp[: len(webp) // 2], cut),
        "TIFF cut in half": (tif[: len(tif) // 2], cut),
        "PNG with a wrong checksum": (plain[:idat] + b"IDAX" + plain[idat + 4 :], cut),
        "PNG with a wrong checksum of its header": (
            plain[:29] + bytes([plain[29] ^ 1]) + plain[30:],
            cut + "checksum",
        ),
        "JPEG with garbage after its end": (jpeg + b"\xff\xd8garbage" * 9, PICTURE),
        "float TIFF with NaN": (save(nan, "TIFF"), "holds values that are not finite"),
        # No image, or none of ours.
        "text": (b"I am a picture.\n", "not an image: begins with b'I am a p', expected one of"),
        "HTML": (b"\n<!DOCTYPE html><p>404</p>", "not an image: this is HTML, SVG or other XML"),
        "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is HTML, SVG or other XML"),
        "PDF": (b"%PDF-1.7\n%\xe2\xe3", "not an image: this is a PDF"),
        "ICO": (save(picture().resize((16, 16)), "ICO"), "this is an icon"),
        "PSD": (b"8BPS\0\1" + bytes(40), "this is a Photoshop document"),
        "JPEG 2000": (save(PICTURE, "JPEG2000"), "this is JPEG 2000"),
        "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "this is HEIC or a video"),
        # Odd, and right.
        "1 x 1": (save(solid(1, 2, 3, size=(1, 1))), solid(1, 2, 3, size=(1, 1))),
        "1 x 5000": (save(solid(9, 8, 7, size=(1, 5000))), solid(9, 8, 7, size=(1, 5000))),
        "5000 x 1 JPEG": (
            save(solid(9, 9, 9, size=(5000, 1)), "JPEG"),
            solid(9, 9, 9, size=(5000, 1)),
        ),
        "16-bit RGB PNG": (
            png(48, 32, 16, 2, [row.astype(">u2").tobytes() for row in PICTURE * np.uint16(257)]),
            PICTURE,
        ),
        "16-bit grey with tRNS": (
            png(4, 1, 16, 0, [ramp.astype(">u2").tobytes()], chunk(b"tRNS", b"\x80\x80")),
            grey([[0, 1, 255, 255]]),
        ),
        "1 bit": (png(8, 1, 1, 0, [b"\xa5"]), grey([[255, 0, 255, 0, 0, 255, 0, 255]])),
        "interlaced PNG": (interlaced_png(), PICTURE),
        "progressive JPEG": (save(PICTURE, "JPEG", progressive=True), PICTURE),
        "YCCK JPEG": (ycck_jpeg(), solid(255, 0, 0)),
        "MPO": (save(picture(), "MPO", **animated), PICTURE),
        "animated GIF": (save(picture(), "GIF", **animated), PICTURE),
        "animated WebP": (save(picture(), "WEBP", lossless=True, **animated), PICTURE),
        "animated PNG": (save(picture(), "PNG", **animated), PICTURE),
        "TIFF of two pages": (
            # A fresh frame: Pillow leaves the settings of another format on those it has saved.
            save(picture(), "TIFF", save_all=True, append_images=[picture("L")]),
            PICTURE,
        ),
        "BMP of run lengths": (
            run_length_bmp(),
            np.concatenate([PICTURE[:16], np.roll(PICTURE[:16], 16, axis=1)]),
        ),
        "TIFF, big endian": (
            tiff(">", {256: 48, 257: 32, 258: 8, 259: 1, 262: 1, 277: 1, 278: 32}, GREY.tobytes()),
            grey(GREY),
        ),
        "TIFF, LZW": (save(PICTURE, "TIFF", compression="tiff_lzw"), PICTURE),
        "TIFF, tiled": (tiled_tiff(), grey(GREY[:16, 8:24])),
        "PNG called .jpg": (plain, PICTURE),
    }


ODD_FILES = odd_files()
LOSSY = 12


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_odd_file_gives_its_pixels_or_a_reason(name, tmp_path):
    data, expected = ODD_FILES[name]
    path = tmp_path / "odd.jpg"
    path.write_bytes(data)
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected) as info:
            decode_image(path)
        assert "\n" not in str(info.value)
    else:
        image = decode_image(path)
        assert image.shape == expected.shape
        is_lossy = read_header(path).format == "JPEG"
        assert np.abs(image.astype(int) - expected).max() <= (LOSSY if is_lossy else 0)


NAMES = [
    b"caf\xe9.jpg", b"two words.jpg", b" edge .jpg", b"new\nline.jpg", b"tab\t.jpg", b"-rf.jpg",
    b"--help.jpg", "\N{GRINNING FACE}.jpg".encode(), "e\N{COMBINING ACUTE ACCENT}.jpg".encode(),
    b"quote'\".jpg", b"$HOME.jpg", b"*.jpg", b"a|b;c&d.jpg", b"%20.jpg", b"back\\slash.jpg",
    b"x" * 250 + b".jpg",
]  # fmt: skip


def write_folder(root):
    """Write every odd file and name below the class ``odd``, all good ones below ``fine``."""
    (root / "fine").mkdir(parents=True)
    (root / "odd").mkdir()
    for number, (data, _) in enumerate(ODD_FILES.values()):
        (root / "odd" / f"{number:02d}.jpg").write_bytes(data)
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(root / "fine") + b"/" + name)).write_bytes(save(PICTURE))
        Path(os.fsdecode(os.fsencode(root / "odd") + b"/" + name)).write_bytes(b"nothing")
    (root / "odd" / "folder.jpg").mkdir()
    os.mkfifo(root / "odd" / "pipe.jpg")
    (root / "odd" / "link.jpg").symlink_to("/dev/zero")
    (root / "odd" / "dangling.jpg").symlink_to("nowhere")


def hash_tree(root):
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(os.fsencode(path) + repr(path.lstat().st_mtime_ns).encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and names of bytes")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_audit_lists_every_refused_file_once_with_its_reason(workers, tmp_path):
    root = tmp_path / "data"
    write_folder(root)
    before = hash_tree(root)
    folder = discover_folder(root)
    assert len(folder.samples) == len(ODD_FILES) + 2 * len(NAMES)
    unreadable = audit_folder(folder, workers=workers).unreadable
    refused = {
        f"odd/{number:02d}.jpg": expected
        for number, (_, expected) in enumerate(ODD_FILES.values())
        if isinstance(expected, str)
    }
    refused |= {f"odd/{os.fsdecode(name)}": "not an image: begins with" for name in NAMES}
    assert sorted(unreadable) == sorted(refused)
    for path, reason in refused.items():
        assert re.search(reason, unreadable[path]), unreadable[path]
    print(f"{workers} workers: {len(folder.samples)} files, {len(unreadable)} refused")
    assert hash_tree(root) == before


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(save(PICTURE))
    path.chmod(0)
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        decode_image(path)


def run(program, *arguments):
    """Run a program in a process of its own, so that a crash is seen; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"status {result.returncode}: {result.stderr[-2000:]}"
    print(result.stdout)
    return result.stdout


MUTATE = """
import random, sys, time
from pathlib import Path
from finetune.data.decode import decode_image, read_header
from finetune.errors import ImageError

def mutate(data, generator):
    data = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        # Half of the damage at the beginning, where the sizes are.
        last = len(data) if generator.random() < 0.5 else min(200, len(data))
        place, length = generator.randrange(last), generator.choice([1, 2, 4, 16])
        match generator.randrange(5):
            case 0:
                data[place] ^= 1 << generator.randrange(8)
            case 1:
                data[place : place + length] = bytes(len(data[place : place + length]))
            case 2:
                data[place:place] = generator.randbytes(length)
            case 3:
                del data[max(1, place) : place + length]
            case 4 if generator.random() < 0.3:
                del data[max(1, place) :]
    return bytes(data)

def try_to_decode(data, **options):
    try:
        image = decode_image(data, max_megapixels=50, **options)
    except ImageError as error:
        assert str(error) and "\\n" not in str(error)
        return False
    assert image.dtype == "uint8" and image.ndim == 3 and image.shape[2] == 3
    return True

print("format decoded refused slowest")
for path in sorted(Path(sys.argv[1]).iterdir()):
    generator, decoded, slowest, differ = random.Random(path.name), 0, 0, 0
    for _ in range(int(sys.argv[2])):
        data = mutate(path.read_bytes(), generator)
        start = time.process_time()
        is_decoded = try_to_decode(data)
        slowest = max(slowest, time.process_time() - start)
        decoded += is_decoded
        if path.name.startswith("JPEG"):
            differ += is_decoded != try_to_decode(data, min_side_px=16)
    print(path.name, decoded, int(sys.argv[2]) - decoded, f"{slowest:.3f}", flush=True)
    assert slowest < 5 and differ == 0
"""


def test_a_thousand_mutations_of_each_format_crash_nothing(tmp_path):
    image = picture()
    originals = {
        "JPEG": turned(6),
        "JPEG-progressive": save(image, "JPEG", progressive=True),
        "PNG": save(image),
        "PNG-palette": save(image.quantize(6), transparency=1),
        "GIF": save(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "WEBP": save(image, "WEBP"),
        "WEBP-lossless": save(transparent(), "WEBP", lossless=True),
        "BMP": save(image, "BMP"),
        "BMP-rle": run_length_bmp(),
        "TIFF": save(image, "TIFF"),
        "TIFF-lzw": save(image, "TIFF", compression="tiff_lzw"),
    }
    if features.check("avif"):
        originals["AVIF"] = save(image, "AVIF")
    for name, data in originals.items():
        (tmp_path / name).write_bytes(data)
    lines = run(MUTATE, tmp_path, 1000).splitlines()[1:]
    assert [line.split()[0] for line in lines] == sorted(originals)
    for line in lines:
        _, decoded, refused, _ = line.split()
        assert min(int(decoded), int(refused)) > 0


BOMBS = """
import re, sys, time
from pathlib import Path
from finetune.data.decode import decode_image
from finetune.errors import ImageError

def peak_mb():
    # Not getrusage: that begins with the peak of the process which started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

for path in sorted(Path(sys.argv[1]).iterdir()):
    before, start = peak_mb(), time.process_time()
    try:
        decode_image(path)
    except ImageError as error:
        growth, seconds = peak_mb() - before, time.process_time() - start
        print(f"{path.name}: {growth:.1f} MB, {seconds:.3f} s: {error}")
        assert growth < 100 and seconds < 1, path.name
    else:
        raise AssertionError(f"{path.name} was decoded")
"""


def zeros(count):
    """Compress a multiple of 100,000 zeros to a thousandth, at once."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = packer.compress(bytes(100_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (count % 65521) << 16 | 1
    return b"\x78\x9c" + block * (count // 100_000) + b"\3\0" + struct.pack(">I", checksum)


def patch(data, place, form, *values):
    return data[:place] + struct.pack(form, *values) + data[place + struct.calcsize(form) :]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counter")
def test_bombs_are_refused_from_their_header(tmp_path):
    jpeg, gif, bmp = (save(PICTURE, name) for name in ("JPEG", "GIF", "BMP"))
    webp = save(picture(), "WEBP", save_all=True, append_images=[picture("L")])
    assert zlib.decompress(zeros(200_000)) == bytes(200_000)
    bombs = {
        # All of its pixels are there.
        "PNG": png(30_000, 30_000, 8, 0, zeros(30_001 * 30_000 // 100_000 * 100_000)),
        "GIF": patch(gif, 6, "<HH", 65535, 65535),
        "BMP": patch(bmp, 18, "<ii", 60_000, 60_000),
        "JPEG": patch(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65500, 65500),
        "TIFF": tiff(
            "<", {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 277: 1}, GREY.tobytes()
        ),
        "WEBP": patch(webp, 24, "<HBHB", 16_383, 0, 16_383, 0),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    lines = run(BOMBS, tmp_path).splitlines()
    assert len(lines) == len(bombs)
    for line in lines:
        assert re.search("megapixels, expected at most max_megapixels=200|too many pixels", line)
