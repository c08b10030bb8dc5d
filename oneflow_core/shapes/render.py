"""Pictures of scenes: 64x64 RGB or a multiple, anti-aliased, in integers, so the same bytes on every machine."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes.scene import Object, Scene

IMAGE_SIZE = 64
CELL = 20
"""Side of a cell in pixels; the cells' centres lie at 12, 32 and 52, with a margin of 2 around the grid."""
MARGIN = 2
BACKGROUND = (244, 244, 240)
RGB = {
    "red": (224, 32, 32),
    "green": (16, 168, 64),
    "blue": (32, 64, 232),
    "yellow": (248, 208, 0),
    "pink": (240, 88, 208),
    "black": (24, 24, 24),
}
RADIUS = {"small": 6, "large": 9}
SUBPIXELS = 8
STAR = ((0, -105), (26, -36), (100, -32), (42, 14), (62, 85), (0, 45))
"""Right half of the star's outline, in hundredths of the radius."""


def render(scene: Scene, scale: int = 1) -> NDArray[np.uint8]:
    """The scene's picture, uint8 [64 * scale, 64 * scale, 3]."""
    image = np.empty((IMAGE_SIZE * scale, IMAGE_SIZE * scale, 3), np.uint8)
    image[:] = BACKGROUND
    for thing in scene:
        top, left = (scale * origin for origin in cell_origin(thing.row, thing.col))
        cell = patch(thing.shape, thing.colour, thing.size, scale)
        image[top : top + len(cell), left : left + len(cell)] = cell
    return image


def cell_origin(row: int, col: int) -> tuple[int, int]:
    """Top and left pixel of a cell."""
    return MARGIN + CELL * row, MARGIN + CELL * col


def render_object(thing: Object) -> NDArray[np.uint8]:
    """The picture of a scene of one object, uint8 [64, 64, 3]."""
    return render(Scene([thing]))


@cache
def patch(shape: str, colour: str, size: str, scale: int = 1) -> NDArray[np.uint8]:
    """The pixels of a cell that holds the object, uint8 [20 * scale, 20 * scale, 3], read-only."""
    cover = coverage(shape, size, scale).astype(np.int64)[..., None]
    full = SUBPIXELS**2
    mixed = cover * np.array(RGB[colour]) + (full - cover) * np.array(BACKGROUND)
    pixels: NDArray[np.uint8] = ((mixed + full // 2) // full).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


@cache
def coverage(shape: str, size: str, scale: int = 1) -> NDArray[np.uint8]:
    """Sub-pixels of each pixel of a cell that the shape covers, 0 to 64, uint8 [20 * scale, ...], read-only."""
    side = CELL * scale
    steps = 2 * np.arange(side * SUBPIXELS) + 1 - side * SUBPIXELS
    unit = RADIUS[size] * scale * 2 * SUBPIXELS
    # In hundredths of the radius times `unit`, which keeps everything an integer.
    inside = _inside(shape, 100 * steps[None, :], 100 * steps[:, None], unit)
    blocks = inside.reshape(side, SUBPIXELS, side, SUBPIXELS)
    counts: NDArray[np.uint8] = blocks.sum(axis=(1, 3)).astype(np.uint8)
    counts.flags.writeable = False
    return counts


def _inside(shape: str, x: NDArray[np.int64], y: NDArray[np.int64], unit: int) -> NDArray[np.bool_]:
    across, down = np.abs(x), np.abs(y)
    squared = x * x + y * y
    match shape:
        case "circle":
            return squared <= (96 * unit) ** 2
        case "ring":
            return (squared <= (100 * unit) ** 2) & (squared >= (56 * unit) ** 2)
        case "square":
            return (across <= 98 * unit) & (down <= 98 * unit)
        case "cross":
            return ((across <= 30 * unit) & (down <= 100 * unit)) | (
                (down <= 30 * unit) & (across <= 100 * unit)
            )
        case "triangle":
            return _in_outline(((0, -98), (100, 86), (0, 86)), across, y, unit)
        case "star":
            return _in_outline(STAR, across, y, unit)
    raise ValueError(f"no outline for the shape {shape!r}")


def _in_outline(
    points: tuple[tuple[int, int], ...], across: NDArray[np.int64], y: NDArray[np.int64], unit: int
) -> NDArray[np.bool_]:
    """Even-odd rule for an outline that is mirrored at x = 0: counts the edges to the right of a point."""
    crossings = np.zeros(np.broadcast_shapes(across.shape, y.shape), np.int64)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if y0 > y1:
            (x0, y0), (x1, y1) = (x1, y1), (x0, y0)
        level = (y >= y0 * unit) & (y < y1 * unit)
        right = (across - x0 * unit) * (y1 - y0) < (x1 - x0) * (y - y0 * unit)
        crossings += level & right
    return np.asarray(crossings % 2 == 1)
