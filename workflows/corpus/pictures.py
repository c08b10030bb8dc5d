"""Image files to squares of RGB pixels, with every odd mode handled on purpose."""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oneflow_core.images import cover, upright_size
from workflows.corpus.config import LimitsConfig

Square = NDArray[np.uint8]
T = TypeVar("T")


class PictureError(ValueError):
    """An image that is refused; its text is the reason, in few distinct words."""


def probe(data: bytes, limits: LimitsConfig) -> tuple[int, int]:
    """Width and height in pixels of an image that decodes to its last row.

    Raises:
        PictureError: "image too large" (told by the header, before anything is decoded) or "image unreadable".
    """
    if len(data) > limits.image_bytes:
        raise PictureError("image too large")
    return _decoded(data, lambda image: _loaded(image, limits))


def square(data: bytes, size: int) -> Square:
    """The image as uint8 [size, size, 3]: as `framed`."""
    return framed(data, (size, size))


def framed(data: bytes, size: tuple[int, int], meant: Callable[[int, int], bool] | None = None) -> Square:
    """The image as uint8 [height, width, 3]: upright by its EXIF, on white where transparent, cropped, resized.

    Palettes, greys of 1 to 16 bits and CMYK become RGB; 16 bits are scaled to 8; of an animation the first frame is
    taken; colour profiles are not applied. An image that has the `size` already keeps its pixels.

    Raises:
        PictureError: as `probe`; "image mode" for pixels without a defined range (floating point); "image size" where
            `meant` says no to the upright sides.
    """
    return _decoded(data, lambda image: _framed(image, size, meant))


def _decoded(data: bytes, use: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return use(image)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError("image too large") from None
    except Exception:  # noqa: BLE001 decoders of untrusted bytes raise what they like
        raise PictureError("image unreadable") from None


def _loaded(image: Image.Image, limits: LimitsConfig) -> tuple[int, int]:
    width, height = image.size
    if width * height > limits.image_pixels:
        raise PictureError("image too large")
    if image.mode == "F":
        raise PictureError("image mode")
    image.load()
    return width, height


def _framed(image: Image.Image, size: tuple[int, int], meant: Callable[[int, int], bool] | None) -> Square:
    if image.mode == "F":
        raise PictureError("image mode")
    if meant is not None and not meant(*upright_size(image)):
        raise PictureError("image size")
    return cover(image, *size)
