"""Image files: what they are by their header and structure, and as squares of RGB pixels; every odd mode on purpose."""

import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from oneflow_core.images import cover, opaque, upright_size
from workflows.corpus.config import LimitsConfig
from workflows.corpus.image_files import OTHERS, Absurd, ImageFormat, format_of, holds_pixels, whole

Square = NDArray[np.uint8]
T = TypeVar("T")
MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
    | {"I", "I;16", "I;16B", "I;16L", "I;16N"}
)
"""Pixels that have one meaning. Floating point has no defined range, LAB needs a profile."""
DRAFT_PIXELS = 128
"""A JPEG that is only to be hashed is decoded at a fraction of its size, not below this."""
# Damaged metadata is nothing to tell in a log, image by image.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(ValueError):
    """An image that is refused; its text is the reason, in few distinct words."""


def probe(data: bytes, limits: LimitsConfig) -> tuple[int, int]:
    """Width and height in pixels, upright, of an image that is there to its end.

    Told by header and structure. Only where these leave it open is the image decoded, once, to its last row. Damage
    between the header and the end shows when pixels are wanted.

    Raises:
        PictureError: "image too large" (before anything is decoded), "image format", "image mode", "image unreadable".
    """
    if len(data) > limits.image_bytes:
        raise PictureError("image too large")
    kind = _kind(data)
    if kind not in limits.image_formats:
        raise PictureError("image format")
    try:
        sure = whole(kind, data)
    except Absurd:
        raise PictureError("image unreadable") from None
    return _decoded(data, lambda image: _looked_at(image, data, sure, limits))


def square(data: bytes, size: int) -> Square:
    """The image as uint8 [size, size, 3]: as `framed`."""
    return framed(data, (size, size))


def framed(data: bytes, size: tuple[int, int], meant: Callable[[int, int], bool] | None = None) -> Square:
    """The image as uint8 [height, width, 3]: upright by its EXIF, on white where transparent, cropped, resized.

    Palettes, greys of 1 to 16 bits and CMYK (of a JPEG: inverted, as Adobe has it and all follow) become RGB; 16 bits
    are scaled to 8; of an animation the first frame is taken; colour profiles are not applied; EXIF that is damaged
    turns nothing. An image that has the `size` already keeps its pixels.

    Raises:
        PictureError: as `probe`; "image size" where `meant` says no to the upright sides.
    """
    return _decoded(data, lambda image: _framed(image, size, meant))


def small(data: bytes) -> Image.Image:
    """The image upright, opaque and in RGB, at a fraction of its size where that costs less: to be hashed.

    Raises:
        PictureError: as `probe`.
    """
    return _decoded(data, _drafted)


def _kind(data: bytes) -> ImageFormat:
    kind = format_of(data)
    if kind is None:
        raise PictureError("image format" if OTHERS.match(data) else "image unreadable")
    if kind == "avif" and not features.check("avif"):
        raise PictureError("image format")
    return kind


def _decoded(data: bytes, use: Callable[[Image.Image], T]) -> T:
    kind = _kind(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            return use(image)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError("image too large") from None
    except Exception:  # noqa: BLE001 decoders of untrusted bytes raise what they like
        raise PictureError("image unreadable") from None


def _looked_at(image: Image.Image, data: bytes, sure: bool, limits: LimitsConfig) -> tuple[int, int]:
    width, height = image.size
    if width * height > limits.image_pixels:
        raise PictureError("image too large")
    _check_mode(image)
    if not (sure and holds_pixels(image, len(data))) or _told_late(image, data):
        image.load()
    elif image.format == "PNG":
        # Pillow would decode the pixels to look for EXIF behind them, where there is none.
        image.info.setdefault("exif", b"")
    return upright_size(image)


def _told_late(image: Image.Image, data: bytes) -> bool:
    """Whether a PNG says after its pixels what may turn it."""
    if image.format != "PNG":
        return False
    pixels = data.find(b"IDAT")
    return any(data.find(kind, pixels) >= 0 for kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


def _framed(image: Image.Image, size: tuple[int, int], meant: Callable[[int, int], bool] | None) -> Square:
    _check_mode(image)
    if meant is not None and not meant(*upright_size(image)):
        raise PictureError("image size")
    return cover(image, *size)


def _drafted(image: Image.Image) -> Image.Image:
    _check_mode(image)
    image.draft("RGB", (DRAFT_PIXELS, DRAFT_PIXELS))
    return opaque(image)


def _check_mode(image: Image.Image) -> None:
    # A TIFF's 32-bit integers have no defined range; in other formats they hold 16 bits.
    if image.mode not in MODES or (image.mode == "I" and image.format == "TIFF"):
        raise PictureError("image mode")
