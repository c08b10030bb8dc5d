"""Pictures of every kind end as the same square of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from oneflow_core.images import BACKGROUND, cover, fit, upright_size


def test_a_square_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(fit(Image.fromarray(pixels), 64), pixels)


def test_the_centre_is_kept() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = (200, 30, 10)
    assert (fit(Image.fromarray(pixels), 32) == (200, 30, 10)).all()
    assert (fit(Image.fromarray(pixels.transpose(1, 0, 2)), 32) == (200, 30, 10)).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "PA"]
)
def test_every_mode_gives_rgb(mode: str) -> None:
    image = Image.new("L", (40, 20), 255)
    image = (
        Image.new(mode, (40, 20), 65535 if mode.startswith("I") else 1.0)
        if mode[0] in "IF"
        else image.convert(mode)
    )
    out = fit(image, 16)
    assert (out.shape, out.dtype) == ((16, 16, 3), np.uint8)
    assert out.min() >= 254


def test_what_is_transparent_shows_the_background() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (fit(clear, 8) == BACKGROUND).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255] + [0] * 765)
    palette.info["transparency"] = 0
    assert (fit(palette, 8) == BACKGROUND).all()


def test_exif_orientation_is_applied() -> None:
    import io

    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = fit(Image.open(io.BytesIO(buffer.getvalue())), 16)
    assert turned[:8].max() == 0 and turned[8:].min() == 255


def test_a_size_of_another_aspect_keeps_the_centre() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 50:250] = (200, 30, 10)
    assert (cover(Image.fromarray(pixels), 64, 32) == (200, 30, 10)).all()
    assert (cover(Image.fromarray(pixels.transpose(1, 0, 2)), 32, 64) == (200, 30, 10)).all()


def test_a_picture_of_the_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    assert np.array_equal(cover(Image.fromarray(pixels), 80, 48), pixels)


def test_sides_are_told_upright() -> None:
    import io

    for orientation, size in ((1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (20, 30))):
        image, exif = Image.new("RGB", (30, 20)), Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=exif)
        assert upright_size(Image.open(io.BytesIO(buffer.getvalue()))) == size
