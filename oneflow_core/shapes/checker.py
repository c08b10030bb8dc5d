"""Reads scenes back from pixels, and rejects what is no scene.

Each cell is compared with every template at small shifts and blurs; a scene is accepted only where its
re-rendering explains the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes.render import BACKGROUND, CELL, IMAGE_SIZE, MARGIN, cell_origin, patch
from oneflow_core.shapes.scene import COLOURS, GRID, MAX_OBJECTS, SHAPES, SIZES, Object, Scene

PRESENT = 16.0
"""A cell holds something when its nearest template explains more than this, in grey levels (root mean square)."""
UNEXPLAINED = 0.25
"""Largest share of an accepted object's energy that its template leaves unexplained."""
STRAY = 18.0
"""Largest root mean square difference, in grey levels, between an accepted picture and its re-rendering."""
_REACH = range(-MARGIN, MARGIN + 1)
SHIFTS = tuple(sorted(((y, x) for y in _REACH for x in _REACH), key=lambda s: (s[0] ** 2 + s[1] ** 2, s)))
BLURS = (0.0, 0.8, 1.4)
"""Standard deviations in pixels at which templates are compared."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The best guess for a cell that holds something."""

    thing: Object
    salience: float
    """How much of the cell's distance from the background the template explains, in grey levels (rms)."""
    unexplained: float
    """Share of the cell's energy that the template leaves over: 0 for a perfect picture, near 1 for noise."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a picture shows: the best guess for every cell that holds something, in reading order."""

    sightings: tuple[Sighting, ...]
    scene: Scene | None
    """The scene, or None where the picture is rejected."""

    @classmethod
    def of(cls, scene: Scene) -> Reading:
        """The reading of the scene's own rendering, without the pixels; everything is equally salient."""
        return cls(tuple(Sighting(thing, 1.0, 0.0) for thing in scene), scene)


def examine(image: NDArray[np.uint8]) -> Reading:
    """Reads a picture, uint8 [64, 64, 3]; any other shape or type raises ValueError."""
    seen, residual = _sightings(image)
    explained = residual <= STRAY and all(s.unexplained <= UNEXPLAINED for s in seen)
    accepted = explained and 1 <= len(seen) <= MAX_OBJECTS
    return Reading(tuple(seen), Scene(s.thing for s in seen) if accepted else None)


def read(image: NDArray[np.uint8]) -> Scene | None:
    """The scene that the picture shows, or None where it shows none. See `examine`."""
    return examine(image).scene


def read_objects(image: NDArray[np.uint8]) -> list[Sighting]:
    """The best guess for every cell that holds something, however poor, in reading order. See `examine`."""
    return list(examine(image).sightings)


def _sightings(image: NDArray[np.uint8]) -> tuple[list[Sighting], float]:
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"the checker reads uint8 [64, 64, 3], not {image.dtype} {list(image.shape)}")
    offset = image.astype(np.float32) - np.array(BACKGROUND, np.float32)
    names, templates = _templates()
    squares = (templates**2).sum(1)
    rest, seen = offset.copy(), []
    for row, col in product(range(GRID), repeat=2):
        windows = _windows(offset, row, col)
        energies = (windows**2).sum(1)
        needed = PRESENT**2 * windows.shape[1]
        if energies.max() < needed:  # a template explains at most what is there
            continue
        explained = 2 * windows @ templates.T - squares
        shift, name = np.unravel_index(int(np.argmin(energies[:, None] - explained)), explained.shape)
        gain = float(explained[shift, name])
        if gain < needed:
            continue
        shape, colour, size = names[name]
        salience = float(np.sqrt(gain / windows.shape[1]))
        unexplained = max(1 - gain / float(energies[shift]), 0.0)
        seen.append(Sighting(Object(row, col, shape, colour, size), salience, unexplained))
        _remove(rest, row, col, SHIFTS[int(shift)], templates[name])
    return seen, float(np.sqrt((rest**2).mean()))


def _windows(offset: NDArray[np.float32], row: int, col: int) -> NDArray[np.float32]:
    """The cell at every shift, float32 [shifts, 1200], the unshifted one first."""
    top, left = cell_origin(row, col)
    cuts = [offset[top + y : top + y + CELL, left + x : left + x + CELL].ravel() for y, x in SHIFTS]
    return np.stack(cuts)


def _remove(
    rest: NDArray[np.float32], row: int, col: int, shift: tuple[int, int], template: NDArray[np.float32]
) -> None:
    top, left = cell_origin(row, col)
    y, x = top + shift[0], left + shift[1]
    rest[y : y + CELL, x : x + CELL] -= template.reshape(CELL, CELL, 3)


@cache
def _templates() -> tuple[list[tuple[str, str, str]], NDArray[np.float32]]:
    """Every (shape, colour, size) at every blur, as differences from the background: float32 [216, 1200]."""
    names, rows = [], []
    for blur in BLURS:
        smooth = _smoother(blur)
        for name in product(SHAPES, COLOURS, SIZES):
            sharp = patch(*name).astype(np.float32) - np.array(BACKGROUND, np.float32)
            names.append(name)
            down = np.tensordot(smooth, sharp, 1)
            rows.append(np.moveaxis(np.tensordot(smooth, down, (1, 1)), 0, 1).ravel())
    return names, np.stack(rows).astype(np.float32)


def _smoother(blur: float) -> NDArray[np.float32]:
    """A Gaussian blur of one axis as a matrix, float32 [20, 20]; beyond the cell lies background."""
    steps = np.arange(CELL)
    if blur == 0:
        return np.eye(CELL, dtype=np.float32)
    weights = np.exp(-((steps[:, None] - steps[None, :]) ** 2) / (2 * blur**2))
    return np.asarray(weights / weights[CELL // 2].sum(), np.float32)
