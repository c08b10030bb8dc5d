"""Odd images: every mode handled on purpose, against pixels worked out by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.reference import shared
from tests.workflows.corpus.inputs import encoded
from workflows.corpus.config import LimitsConfig
from workflows.corpus.pictures import PictureError, probe, square

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


def test_exif_turns_it_upright() -> None:
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned = square(encoded(image, "PNG", exif=exif), 64)
    np.testing.assert_array_equal(turned, np.rot90(PIXELS, -1))


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

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

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
