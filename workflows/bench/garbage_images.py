"""Files that are no images, or images that nobody should unpack."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def valid(rng: random.Random) -> tuple[str, bytes]:
    """A small image: its format and its bytes."""
    mode = rng.choice(("RGB", "L", "RGBA", "P", "1", "I;16", "LA"))
    size = (rng.randint(1, 40), rng.randint(1, 40))
    kind = rng.choice(("PNG", "JPEG", "WEBP"))
    image = Image.new(mode, size, 1)
    if kind != "PNG":
        image = image.convert("RGB") if mode != "I;16" else Image.new("RGB", size)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return kind, buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """The first chunk of a PNG file, with its signature."""
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def huge_png(rng: random.Random) -> bytes:
    """A few bytes that say they are millions of pixels a side."""
    side = rng.choice((30_000, 100_000, 2**31 - 1))
    return header(side, side) + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")


def flat_png(rng: random.Random) -> bytes:
    """Fits into the pixels that are allowed, and shrinks a thousandfold: 48 MiB of 16-bit zeros."""
    side = rng.choice((2047, 2048))
    rows = bytes((1 + 8 * side) * side)
    return header(side, side, 16, 6) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def text_bomb(rng: random.Random) -> bytes:
    """A PNG whose compressed texts or profile unpack to 64 MiB each."""
    bomb = zlib.compress(bytes(1 << 26), 9)
    name = rng.choice((b"zTXt", b"iCCP", b"iTXt"))
    data = b"a\0" + b"\1\0\0\0" + bomb if name == b"iTXt" else b"a\0\0" + bomb
    body = chunk(name, data) * rng.randint(1, 20)
    return header(1, 1) + body + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


def long_rows(rng: random.Random) -> bytes:
    """One pixel whose data unpacks to far more than it needs."""
    data = zlib.compress(bytes(1 << 26), 9)
    return header(1, 1) + chunk(b"IDAT", data) * rng.randint(1, 3) + chunk(b"IEND", b"")


def huge_jpeg(rng: random.Random) -> bytes:
    """A JPEG of 65,500 pixels a side, without them."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    side = rng.choice((65_500, 40_000, 2049))
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def huge_webp(rng: random.Random) -> bytes:
    """A WebP whose canvas has 16,384 pixels a side; or as many frames as fit."""
    side = (16_384 - 1).to_bytes(3, "little")
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes((rng.choice((0, 2, 16)), 0, 0, 0)) + side + side
    lossless = b"VP8L" + struct.pack("<I", 6) + b"\x2f\xff\xff\xff\x0f\x00"
    body = b"WEBP" + rng.choice((canvas + lossless, lossless))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated(rng: random.Random) -> bytes:
    """Many frames of one picture."""
    frames = [Image.new("RGB", (32, 32), (n, 0, 0)) for n in range(rng.randint(2, 60))]
    buffer = io.BytesIO()
    kind = rng.choice(("PNG", "WEBP", "GIF"))
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def other_format(rng: random.Random) -> bytes:
    """Formats that Pillow reads but nobody asked for, some of which start programs (EPS) or are archives."""
    kind = rng.choice(("GIF", "BMP", "TIFF", "PPM", "ICO", "PDF", "EPS", "TGA", "PCX", "SGI"))
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)
    return buffer.getvalue()


def svg(rng: random.Random) -> bytes:
    """An SVG that wants files."""
    return b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'


def truncated(rng: random.Random) -> bytes:
    """The beginning of an image."""
    _, data = valid(rng)
    return data[: rng.randrange(len(data))]


def damaged(rng: random.Random) -> bytes:
    """An image with some bytes changed, taken out or doubled."""
    _, data = valid(rng)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        at = rng.randrange(len(changed))
        how = rng.randrange(3)
        if how == 0:
            changed[at] = rng.randrange(256)
        elif how == 1 and len(changed) > 1:
            del changed[at]
        else:
            changed[at:at] = changed[at : at + 8]
    return bytes(changed)


def noise(rng: random.Random) -> bytes:
    """Random bytes, now and then behind the signature of a format."""
    head = rng.choice((b"", SIGNATURE, b"\xff\xd8\xff\xe0", b"RIFF\x10\x00\x00\x00WEBP", b"GIF89a", b"BM"))
    return head + rng.randbytes(rng.randrange(400))


CHEAP: tuple[Callable[[random.Random], bytes], ...] = (
    huge_png,
    huge_jpeg,
    huge_webp,
    animated,
    other_format,
    svg,
    truncated,
    damaged,
    noise,
)
COSTLY: tuple[Callable[[random.Random], bytes], ...] = (text_bomb, long_rows, flat_png)
"""Those that take a second to make."""
