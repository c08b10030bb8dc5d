"""Any picture as the square of pixels that a model reads: the same for a corpus and for a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = (255, 255, 255)
"""What stands behind transparent pixels."""


def fit(image: Image, size: int) -> NDArray[np.uint8]:
    """The centre square of `image`, upright, in RGB, resampled to `size` pixels: uint8 [size, size, 3].

    A picture that is an RGB square of that size already comes back bit by bit.
    """
    from PIL import Image as Images
    from PIL import ImageOps

    upright = _opaque(ImageOps.exif_transpose(image))
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Images.Resampling.BICUBIC), np.uint8)


def _opaque(image: Image) -> Image:
    from PIL import Image as Images

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        depth = np.asarray(image, np.float64) / (65535 if image.mode != "F" else 1.0)
        return Images.fromarray((depth.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Images.alpha_composite(Images.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
