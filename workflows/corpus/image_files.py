"""Image files by their structure: which format, and whether the file is there to its end, without decoding a pixel."""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from PIL import Image

ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm", "avif"]
ALL: tuple[ImageFormat, ...] = get_args(ImageFormat)
SIGNATURES: tuple[tuple[re.Pattern[bytes], ImageFormat], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"GIF8[79]a"), "gif"),
    (re.compile(rb"BM"), "bmp"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "tiff"),
    (re.compile(rb"P[1-6fF]\s"), "ppm"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "avif"),
)
OTHERS = re.compile(
    rb"8BPS|%PDF|%!PS|\0\0\x01\0|\0\0\0\x0c(jP|JXL) |\xff\x4f\xff\x51|\xff\x0a|....ftyp(hei|hev|mif1|msf1)|SIMPLE  ="
    rb"|DDS |icns|v/1\x01|#\?RADIANCE|qoif|\xd7\xcd\xc6\x9a|(\xef\xbb\xbf)?\s*<(\?xml|svg|!doctype|html|head|body)",
    re.DOTALL | re.IGNORECASE,
)
"""How files begin that are well-known not to be one of ours: other pictures, and pages that tell of an error."""
PARTS = 100_000
"""Most segments, chunks or blocks of a file; no program that writes pictures makes more, and Python walks them."""
SCANS = 500
"""Most scans of a progressive JPEG: each goes over all pixels. 10 are usual."""


class Absurd(ValueError):
    """A file that no program writes, made to keep a decoder busy."""


def format_of(data: bytes) -> ImageFormat | None:
    """What the first bytes say; None for what is none of the formats that are read."""
    return next((kind for signature, kind in SIGNATURES if signature.match(data)), None)


def whole(kind: ImageFormat, data: bytes) -> bool:
    """Whether the file goes to its end, for all that its structure tells; False: only decoding can tell.

    What follows the end does not matter. Of an animation only the first frame has to be there.

    Raises:
        Absurd: parts beyond number, or a PNG whose checksums tell that its pixels are damaged.
    """
    try:
        return WALKS[kind](data) if kind in WALKS else True
    except (IndexError, ValueError) as error:
        if isinstance(error, Absurd):
            raise
        return False


def holds_pixels(image: Image.Image, length: int) -> bool:
    """Whether all rows that the header of an opened BMP, PPM or TIFF speaks of lie in a file of `length` bytes.

    False: only decoding can tell. True for formats that `whole` walks.
    """
    if image.format == "TIFF":
        return _strips(image, length)
    if image.format not in ("BMP", "PPM"):
        return True
    width, height = image.size
    tiles: Any = getattr(image, "tile", [])
    for codec, _, offset, args in tiles:
        layout, *stride = (args,) if isinstance(args, str) else args or ("",)
        row = int(stride[0]) if stride else -(-width * _RAW_BITS.get(layout, 0) // 8)
        if codec != "raw":
            return False
        if not row or offset + row * height > length:
            return False
    return bool(tiles)


_RAW_BITS: Mapping[str, int] = {"1;I": 1, "L": 8, "I;16B": 16, "RGB": 24}
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The first marker after entropy-coded data, in which 0xFF is followed by 0x00 or a restart marker."""


def _jpeg(data: bytes) -> bool:
    place, scans = 2, 0
    for _ in range(PARTS):
        if data[place] != 0xFF:
            return False
        while data[place] == 0xFF:
            place += 1
        marker, place = data[place], place + 1
        if marker == 0xD9:
            return scans > 0
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        place += _number(data, place, 2, "big")
        if marker == 0xDA:
            scans += 1
            found = _AFTER_SCAN.search(data, place)
            if found is None:
                return False
            place = found.start()
        if scans > SCANS:
            break
    raise Absurd("segments or scans beyond number")


def _png(data: bytes) -> bool:
    place = 8
    for _ in range(PARTS):
        length, kind = _number(data, place, 4, "big"), data[place + 4 : place + 8]
        body = memoryview(data)[place + 4 : place + 8 + length]
        place += 12 + length
        if kind == b"IEND":
            return True
        # Capital letters name chunks that the picture cannot do without.
        if kind[:1].isupper() and zlib.crc32(body) != _number(data, place - 4, 4, "big"):
            raise Absurd("a chunk is not what its checksum says")
    raise Absurd("chunks beyond number")


def _gif(data: bytes) -> bool:
    place = 13 + _colours(data[10])
    for _ in range(PARTS):
        kind = data[place]
        if kind == 0x2C:
            place += 10 + _colours(data[place + 9])
            _blocks(data, place + 1)
            return True
        if kind != 0x21:
            return False
        place = _blocks(data, place + 2)
    raise Absurd("blocks beyond number")


def _colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks(data: bytes, place: int) -> int:
    """Where the run of sub-blocks at `place` ends."""
    for _ in range(5 * PARTS):
        size = data[place]
        place += 1 + size
        if not size:
            return place
    raise Absurd("blocks beyond number")


def _webp(data: bytes) -> bool:
    # Chunks are padded to even lengths; some writers forget the last.
    return _number(data, 4, 4, "little") + 8 <= len(data) + 1


def _avif(data: bytes) -> bool:
    place = 0
    for _ in range(PARTS):
        if place == len(data):
            return True
        size = _number(data, place, 4, "big")
        if size == 1:
            size = _number(data, place + 8, 8, "big")
        if size < 8 or place + size > len(data):
            return False
        place += size
    raise Absurd("boxes beyond number")


WALKS: Mapping[ImageFormat, Callable[[bytes], bool]] = {
    "jpeg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _webp,
    "avif": _avif,
}
"""Format -> a walk over its structure; the others tell where their pixels lie in a header (`holds_pixels`)."""


def _number(data: bytes, place: int, size: int, order: Literal["big", "little"]) -> int:
    raw = data[place : place + size]
    if len(raw) < size:
        raise IndexError(place)
    return int.from_bytes(raw, order)


def _strips(image: Image.Image, length: int) -> bool:
    tags: Any = getattr(image, "tag_v2", {})
    for offsets, counts in ((273, 279), (324, 325)):
        starts, sizes = tags.get(offsets), tags.get(counts)
        if starts and sizes:
            return len(starts) == len(sizes) and all(
                start + size <= length for start, size in zip(starts, sizes, strict=True)
            )
    return False
