"""Odd images: every mode handled on purpose, against pixels worked out by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from oneflow_core.images import upright_size
from tests.reference import shared
from tests.workflows.corpus.inputs import encoded
from workflows.corpus.config import LimitsConfig
from workflows.corpus.pictures import PictureError, probe, small, square

LIMITS = LimitsConfig()
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_an_image_of_the_size_keeps_its_pixels() -> None:
    data = encoded(Image.fromarray(PIXELS), "PNG")
    np.testing.assert_array_equal(square(data, 64), PIXELS)
    assert probe(data, LIMITS) == (64, 64)


def test_transparency_is_laid_on_white() -> None:
    alpha = RNG.integers(0, 256, (64, 64, 1), dtype=np.uint8)
    rgba = Image.fromarray(np.concatenate([PIXELS, alpha], axis=2), "RGBA")
    share = alpha / 255.0
    expected = PIXELS * share + 255.0 * (1 - share)
    np.testing.assert_allclose(square(encoded(rgba, "PNG"), 64), expected, atol=1.01)
    grey_alpha = rgba.convert("LA")
    luma = np.asarray(grey_alpha)[..., :1] * share + 255.0 * (1 - share)
    np.testing.assert_allclose(square(encoded(grey_alpha, "PNG"), 64), np.repeat(luma, 3, 2), atol=1.01)


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (32, 0, 64, 64))
    plain = square(encoded(image, "PNG"), 64)
    assert plain[0, 0].tolist() == [10, 20, 30] and plain[0, 63].tolist() == [200, 100, 50]
    through = square(encoded(image, "PNG", transparency=0), 64)
    assert through[0, 0].tolist() == [255, 255, 255] and through[0, 63].tolist() == [200, 100, 50]
    rgb = Image.fromarray(PIXELS)
    key = tuple(int(v) for v in PIXELS[5, 7])
    assert square(encoded(rgb, "PNG", transparency=key), 64)[5, 7].tolist() == [255, 255, 255]


def test_sixteen_bits_become_eight() -> None:
    grey = RNG.integers(0, 65536, (64, 64), dtype=np.uint16)
    expected = np.repeat(np.round(grey / 65535 * 255)[..., None], 3, 2)
    np.testing.assert_allclose(square(encoded(Image.fromarray(grey), "PNG"), 64), expected, atol=1)


def test_one_bit_grey_and_cmyk() -> None:
    bits = Image.fromarray(PIXELS).convert("1")
    np.testing.assert_array_equal(square(encoded(bits, "PNG"), 64)[..., 0], np.asarray(bits) * 255)
    red = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    assert np.abs(square(encoded(red, "JPEG"), 64).astype(int) - [255, 0, 0]).max() <= 4


# As EXIF defines them: where row 0 and column 0 of what is stored stand in the upright image.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("turn", sorted(UPRIGHT))
def test_exif_turns_it_upright(turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    flat = np.repeat(np.repeat(PIXELS[::8, ::8], 8, 0), 8, 1)
    found = square(encoded(Image.fromarray(flat), kind, exif=exif, **options), 64)
    np.testing.assert_allclose(found.astype(int), UPRIGHT[turn](flat), atol=24 if kind == "JPEG" else 0)
    wide = encoded(Image.fromarray(PIXELS[:32]), kind, exif=exif, **options)
    assert probe(wide, LIMITS) == ((64, 32) if turn < 5 else (32, 64))
    with Image.open(io.BytesIO(wide)) as image:
        assert upright_size(image) == ((64, 32) if turn < 5 else (32, 64))


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(PIXELS[:32]), "PNG", exif=exif)
    place = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[place : place + 4])[0]
    last = data[:place] + data[place + length : -12] + data[place : place + length] + data[-12:]
    assert probe(last, LIMITS) == (32, 64)
    np.testing.assert_array_equal(square(last, 32), square(data, 32))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_turns_nothing(kind: str) -> None:
    for damage in (
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
    ):
        data = encoded(Image.fromarray(PIXELS[:32]), kind, exif=damage)
        assert probe(data, LIMITS) == (64, 32)
        assert square(data, 32).shape == (32, 32, 3)


def cmyk(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Red, green and blue of inks, by the plain rule."""
    ink = pixels.astype(np.float64)
    return (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255


def test_inks() -> None:
    """As a TIFF has them, exactly; as a JPEG by Adobe has them, inverted: the same picture."""
    inks = np.repeat(np.repeat(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8), 8, 0), 8, 1)
    image = Image.fromarray(inks, "CMYK")
    np.testing.assert_allclose(square(encoded(image, "TIFF"), 64), cmyk(inks), atol=1)
    jpeg = encoded(image, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in jpeg
    np.testing.assert_allclose(square(jpeg, 64), cmyk(inks), atol=6)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(depth: int, colour: int, rows: NDArray[Any], *more: bytes) -> bytes:
    """A PNG written by hand; `rows` are the bytes of each row."""
    height = len(rows)
    header = struct.pack(">IIBBBBB", 64, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def test_sixteen_bits_of_every_kind() -> None:
    grey = RNG.integers(0, 65536, (64, 64), dtype=np.uint16)
    meant = np.repeat(np.round(grey / 65535 * 255)[..., None], 3, 2)
    big = encoded(Image.frombytes("I;16B", (64, 64), grey.astype(">u2").tobytes()), "TIFF")
    pgm = b"P5 64 64 65535 " + grey.astype(">u2").tobytes()
    for data in (raw_png(16, 0, grey.astype(">u2")), big, pgm):
        np.testing.assert_allclose(square(data, 64), meant, atol=1)
    clear = raw_png(16, 0, grey.astype(">u2"), chunk(b"tRNS", struct.pack(">H", grey[3, 4])))
    assert square(clear, 64)[3, 4].tolist() == [255, 255, 255]
    colours = RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    data = raw_png(16, 2, colours.astype(">u2").reshape(64, -1))
    np.testing.assert_allclose(square(data, 64), colours / 257, atol=1)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_are_spread_over_eight(depth: int) -> None:
    levels = RNG.integers(0, 2**depth, (64, 64), dtype=np.uint8)
    bits = np.unpackbits(levels[..., None], axis=2)[..., 8 - depth :].reshape(64, -1)
    meant = np.repeat((levels * (255 // (2**depth - 1)))[..., None], 3, 2)
    np.testing.assert_array_equal(square(raw_png(depth, 0, np.packbits(bits, axis=1)), 64), meant)
    palette = RNG.integers(0, 256, (2**depth, 3), dtype=np.uint8)
    clear = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", bytes([0]))
    found = square(raw_png(depth, 3, np.packbits(bits, axis=1), clear), 64)
    np.testing.assert_array_equal(found, np.where(levels[..., None] == 0, 255, palette[levels]))


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_one_meaning_are_refused(mode: str) -> None:
    data = encoded(Image.new(mode, (8, 8)), "TIFF")
    for read in (lambda: probe(data, LIMITS), lambda: square(data, 8), lambda: small(data)):
        with pytest.raises(PictureError, match="image mode"):
            read()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_every_kind(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    data = encoded(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert square(data, 64)[3, 3].tolist() == [255, 0, 0]


def test_a_hash_is_taken_of_a_draft() -> None:
    data = encoded(Image.fromarray(PIXELS).resize((2048, 1024)), "JPEG")
    assert small(data).size == (256, 128), "an eighth, which costs a fraction of decoding all"


def test_the_centre_is_kept() -> None:
    wide = np.zeros((64, 200, 3), np.uint8)
    wide[:, 68:132] = PIXELS
    np.testing.assert_array_equal(square(encoded(Image.fromarray(wide), "PNG"), 64), PIXELS)
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(
        square(encoded(Image.fromarray(tall), "PNG"), 64), PIXELS.transpose(1, 0, 2)
    )


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert square(data, 64)[3, 3].tolist() == [255, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"]))
def test_any_shape_becomes_a_square(width: int, height: int, mode: str) -> None:
    data = encoded(Image.new(mode, (width, height)), "TIFF" if mode == "CMYK" else "PNG")
    assert probe(data, LIMITS) == (width, height)
    found = square(data, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8


def test_what_does_not_decode_is_told() -> None:
    whole = encoded(Image.fromarray(PIXELS), "PNG")
    for data in (b"", b"no image", whole[: len(whole) // 2], b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        with pytest.raises(PictureError, match="unreadable"):
            probe(data, LIMITS)
    with pytest.raises(PictureError, match="image mode"):
        probe(encoded(Image.new("F", (8, 8)), "TIFF"), LIMITS)


def bomb(side: int) -> bytes:
    """A PNG that claims side x side pixels in a few bytes."""

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 60000])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(PictureError, match="too large"):
        probe(bomb(side), LIMITS)


def test_large_files_are_refused() -> None:
    data = encoded(Image.fromarray(PIXELS), "BMP")
    with pytest.raises(PictureError, match="too large"):
        probe(data, LimitsConfig(image_bytes=100))


def test_real_odd_images_all_become_squares() -> None:
    for folder in ("openclipart_odd", "photos"):
        for path in sorted(p for p in shared(folder).iterdir() if p.suffix in {".png", ".jpg"}):
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                assert probe(data, LIMITS) == image.size
            found = square(data, 64)
            assert found.shape == (64, 64, 3), path.name
            assert folder != "photos" or found.std() > 10, path.name
