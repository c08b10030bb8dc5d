"""Any picture as the pixels that a model reads: the same for a corpus and for a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = (255, 255, 255)
"""What stands behind transparent pixels."""
ORIENTATION = 0x0112
"""EXIF's tag for how a picture is to be turned."""


def fit(image: Image, size: int) -> NDArray[np.uint8]:
    """The centre square of `image`, upright, in RGB, resampled to `size` pixels: uint8 [size, size, 3].

    A picture that is an RGB square of that size already comes back bit by bit.
    """
    return cover(image, size, size)


def cover(image: Image, width: int, height: int) -> NDArray[np.uint8]:
    """The largest centred part of `image`, upright, in RGB, of the sides' proportion: uint8 [height, width, 3].

    A picture that is RGB and has these sides already comes back bit by bit.
    """
    from PIL import Image as Images

    upright = opaque(image)
    across = max(1, min(upright.width, round(upright.height * width / height)))
    down = max(1, min(upright.height, round(upright.width * height / width)))
    left, top = (upright.width - across) // 2, (upright.height - down) // 2
    part = upright.crop((left, top, left + across, top + down))
    return np.array(part.resize((width, height), Images.Resampling.BICUBIC), np.uint8)


def opaque(image: Image) -> Image:
    """`image` upright and in RGB, on white where it is transparent; greys of 16 bits are scaled to 8."""
    from PIL import Image as Images

    upright = _upright(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        return _grey(upright)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    # Premultiplied grey has no direct way to RGBA.
    rgba = (upright.convert("LA") if upright.mode == "La" else upright).convert("RGBA")
    return Images.alpha_composite(Images.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")


def orientation(image: Image) -> int:
    """How `image` is to be turned, as EXIF counts it: 1 (not at all) to 8; 1 where its EXIF is absent or damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 Pillow raises what the damage leads it to
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image) -> tuple[int, int]:
    """Width and height once `image` is turned as its EXIF says. A PNG, where that may stand last, is decoded."""
    # Pillow gives a TIFF's size as turned, that of all others as stored.
    turned = orientation(image) >= 5 and image.format != "TIFF"
    return (image.height, image.width) if turned else (image.width, image.height)


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    image.load()
    turns = (
        None,
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    turn = turns[orientation(image) - 1]
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _grey(image: Image) -> Image:
    from PIL import Image as Images

    values = np.asarray(image, np.float64)
    depth = (values / (65535 if image.mode != "F" else 1.0)).clip(0, 1)
    if isinstance(image.info.get("transparency"), int):
        depth[values == image.info["transparency"]] = 1.0
    return Images.fromarray((depth * 255).round().astype(np.uint8)).convert("RGB")
