"""Image files by their structure: held against what decoding them whole says."""

import io
import random
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from tests.reference import shared
from tests.workflows.corpus.inputs import encoded
from workflows.corpus.config import LimitsConfig
from workflows.corpus.image_files import ALL, ImageFormat, format_of, whole
from workflows.corpus.pictures import PictureError, probe, square

LIMITS = LimitsConfig()
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
FRAMES = [NOISE.rotate(90 * turn) for turn in range(3)]
FILES: dict[str, bytes] = {
    "jpeg": encoded(NOISE, "JPEG"),
    "progressive": encoded(NOISE, "JPEG", progressive=True, quality=95),
    "restarts": encoded(NOISE, "JPEG", restart_marker_blocks=1),
    "grey": encoded(NOISE.convert("L"), "JPEG"),
    "png": encoded(NOISE, "PNG"),
    "apng": encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "gif": encoded(NOISE, "GIF"),
    "frames": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:], comment=b"c" * 600),
    "webp": encoded(NOISE, "WEBP"),
    "lossless": encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "bmp": encoded(NOISE, "BMP"),
    "bits": encoded(NOISE.convert("1"), "BMP"),
    "tiff": encoded(NOISE, "TIFF"),
    "lzw": encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:], compression="tiff_lzw"),
    "ppm": encoded(NOISE, "PPM"),
    "pgm": encoded(NOISE.convert("L"), "PPM"),
    "pbm": encoded(NOISE.convert("1"), "PPM"),
}
if features.check("avif"):
    FILES["avif"] = encoded(NOISE, "AVIF")


def decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return True
    except Exception:  # noqa: BLE001 that is the question
        return False


def reason(data: bytes, limits: LimitsConfig = LIMITS) -> str:
    """Why `probe` refuses; empty when it does not."""
    try:
        probe(data, limits)
    except PictureError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_whole_file_is_not_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(type(Image.open(io.BytesIO(FILES[name]))), "load", load)
    for junk in (b"", b"\0" * 9, b"junk after the end"):
        if junk and name == "avif":
            continue
        assert probe(FILES[name] + junk, LIMITS) == NOISE.size


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_cut_file_is_kept_only_when_it_decodes(name: str) -> None:
    """Wherever the file ends: what is kept can be made a square of, and what decodes whole is kept."""
    data = FILES[name]
    places = sorted(random.Random(0).sample(range(len(data)), min(60, len(data))))
    for place in [*places, len(data) - 2, len(data) - 1]:
        kept = reason(data[:place]) == ""
        assert kept == decodes(data[:place]), (name, place, len(data))
        if kept:
            assert square(data[:place], 16).shape == (16, 16, 3)


@pytest.mark.timeout(300)
@settings(max_examples=250)
@given(st.sampled_from(sorted(FILES)), st.randoms(use_true_random=False))
def test_mutated_files_are_read_or_refused(name: str, draw: random.Random) -> None:
    """Never another exception, never long; and a square comes out, or a refusal."""
    data = bytearray(FILES[name])
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(data))
        match draw.randrange(3):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                del data[place : place + draw.randint(1, 40)]
            case _:
                data[place:place] = draw.randbytes(draw.randint(1, 40))
        data = data or bytearray(b"x")
    begin = time.process_time()
    assert reason(bytes(data)) in {
        *("", "image unreadable", "image too large", "image mode", "image format"),
    }
    with suppress(PictureError):
        assert square(bytes(data), 16).shape == (16, 16, 3)
    assert time.process_time() - begin < 10


def test_a_flipped_bit_of_a_png_is_seen_without_decoding() -> None:
    data = bytearray(FILES["png"])
    data[data.index(b"IDAT") + 500] ^= 1
    assert reason(bytes(data)) == "image unreadable"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks: bytes) -> bytes:
    """The PNG with `chunks` put in after its header."""
    data = FILES["png"]
    return data[:33] + b"".join(chunks) + data[33:]


def huge(name: str, side: int) -> bytes:
    """The file with its header changed to claim side x side pixels."""
    data = FILES[name]
    if name == "jpeg":
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]
    if name == "gif":
        place = data.index(b"\x2c\0\0\0\0") + 5
        claimed = struct.pack("<HH", side, side)
        return data[:6] + claimed + data[10:place] + claimed + data[place + 4 :]
    if name == "webp":
        extended = b"\0\0\0\0" + (side - 1).to_bytes(3, "little") * 2
        body = b"WEBPVP8X" + struct.pack("<I", len(extended)) + extended + data[12:]
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if name == "bmp":
        return data[:18] + struct.pack("<ii", side, side) + data[26:]
    assert name == "ppm"
    return data.replace(b"56 40", f"{side} {side}".encode(), 1)


@pytest.mark.parametrize("name", ["jpeg", "gif", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("side", [9_000, 16_000])
def test_bombs_of_every_format_are_refused_by_their_header(name: str, side: int) -> None:
    begin = time.process_time()
    assert reason(huge(name, side)) in {"image too large", "image unreadable"}
    assert name == "webp" or reason(huge(name, side)) == "image too large"
    assert time.process_time() - begin < 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "data",
    [
        with_chunks(chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 200_000_000))),
        with_chunks(chunk(b"iCCP", b"k\0\0" + zlib.compress(b"\0" * 200_000_000))),
        with_chunks(chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"\0" * 200_000_000))),
        with_chunks(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 1_000_000))] * 300),
        with_chunks(chunk(b"tEXt", b"k\0v") * 150_000),
        FILES["gif"][:-1] + b"!\xfe\x01x\0" * 150_000 + b";",
        FILES["gif"][:781] + b"!\xfe\x01x\0" * 150_000 + FILES["gif"][781:],
        FILES["jpeg"][:2] + b"\xff\xfe\0\x03c" * 150_000 + FILES["jpeg"][2:],
        FILES["jpeg"][:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 2000 + b"\xff\xd9",
        FILES["tiff"][:4] + b"\xff\xff\xff\x7f" + FILES["tiff"][8:],
    ],
    ids=["zTXt", "iCCP", "iTXt", "texts", "chunks", "comments", "blocks", "segments", "scans", "directory"],
)
def test_files_made_to_keep_a_decoder_busy(data: bytes) -> None:
    begin = time.process_time()
    found = reason(data)
    with suppress(PictureError):
        square(data, 16)
    assert found in {"", "image unreadable"}
    assert time.process_time() - begin < 5


def test_many_frames_and_pages_cost_nothing() -> None:
    frames = [Image.new("L", (8, 8), shade % 256) for shade in range(600)]
    for kind in ("GIF", "TIFF"):
        data = encoded(frames[7], kind, save_all=True, append_images=frames)
        begin = time.process_time()
        assert probe(data, LIMITS) == (8, 8)
        assert square(data, 8)[0, 0].tolist() == [7, 7, 7]
        assert time.process_time() - begin < 0.5


OTHER_FILES = {
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "page": b"\n<!DOCTYPE html><html>403</html>",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "psd": b"8BPS\0\1" + b"\0" * 40,
    "ico": encoded(NOISE, "ICO"),
    "jp2": encoded(NOISE, "JPEG2000") if features.check("jpg_2000") else b"\xff\x4f\xff\x51",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
}


@pytest.mark.parametrize("name", sorted(OTHER_FILES))
def test_other_formats_are_told_apart_from_damage(name: str) -> None:
    assert reason(OTHER_FILES[name]) == "image format"
    with pytest.raises(PictureError, match="image format"):
        square(OTHER_FILES[name], 16)
    assert reason(b"\x01" + OTHER_FILES[name]) in {"image unreadable", "image format"}


def test_formats_may_be_left_out() -> None:
    assert {format_of(data) for data in FILES.values()} | {"avif"} == set(ALL)
    only: tuple[ImageFormat, ...] = ("jpeg",)
    limits = LimitsConfig(image_formats=only)
    assert reason(FILES["jpeg"], limits) == "" and reason(FILES["png"], limits) == "image format"


def test_real_pictures_are_whole() -> None:
    files = [path for name in ("openclipart_odd", "photos") for path in sorted(shared(name).iterdir())]
    for path in (p for p in files if p.suffix in {".png", ".jpg"}):
        data = Path(path).read_bytes()
        kind = format_of(data)
        assert kind is not None and whole(kind, data), path.name
        with Image.open(path) as image:
            assert probe(data, LIMITS) == image.size
        for cut in (len(data) // 3, len(data) - 20):
            assert (reason(data[:cut]) == "") == decodes(data[:cut]), path.name
