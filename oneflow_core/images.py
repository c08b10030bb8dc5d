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
"""EXIF's tag; 5 to 8 turn by a quarter."""


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
    from PIL import ImageOps

    upright = _opaque(ImageOps.exif_transpose(image))
    across = max(1, min(upright.width, round(upright.height * width / height)))
    down = max(1, min(upright.height, round(upright.width * height / width)))
    left, top = (upright.width - across) // 2, (upright.height - down) // 2
    part = upright.crop((left, top, left + across, top + down))
    return np.array(part.resize((width, height), Images.Resampling.BICUBIC), np.uint8)


def upright_size(image: Image) -> tuple[int, int]:
    """Width and height once `image` is turned as its EXIF says; nothing is decoded for it."""
    turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def _opaque(image: Image) -> Image:
    from PIL import Image as Images

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        depth = np.asarray(image, np.float64) / (65535 if image.mode != "F" else 1.0)
        return Images.fromarray((depth.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Images.alpha_composite(Images.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
