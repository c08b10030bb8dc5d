"""Scenes: one to four objects on a 3x3 grid, in reading order, so that a scene has one canonical form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

GRID = 3
MAX_OBJECTS = 4
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = ("red", "green", "blue", "yellow", "pink", "black")
SIZES = ("small", "large")
COUNT_WEIGHTS = (0.6, 0.2, 0.12, 0.08)
"""Chance of 1, 2, 3 and 4 objects in a sampled scene."""


class SceneError(ValueError):
    """A scene or object that the grid cannot hold; the message names the value."""


@dataclass(frozen=True, slots=True, order=True)
class Object:
    """One object; `row` and `col` count from the top left; ordered in reading order."""

    row: int
    col: int
    shape: str
    colour: str
    size: str

    def __post_init__(self) -> None:
        if not (0 <= self.row < GRID and 0 <= self.col < GRID):
            raise SceneError(f"cell ({self.row}, {self.col}) lies outside the {GRID}x{GRID} grid")
        for name, known in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)):
            if getattr(self, name) not in known:
                raise SceneError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")

    @property
    def cell(self) -> tuple[int, int]:
        """(row, col)."""
        return self.row, self.col

    def __str__(self) -> str:
        return f"{self.row}{self.col}:{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Up to four objects in different cells, held in reading order whatever order they came in."""

    objects: tuple[Object, ...]

    def __init__(self, objects: Iterable[Object]) -> None:
        ordered = tuple(sorted(objects))
        if not 1 <= len(ordered) <= MAX_OBJECTS:
            raise SceneError(f"a scene has 1 to {MAX_OBJECTS} objects, not {len(ordered)}")
        if len({o.cell for o in ordered}) != len(ordered):
            raise SceneError(f"two objects share a cell: {'; '.join(map(str, ordered))}")
        object.__setattr__(self, "objects", ordered)

    def __len__(self) -> int:
        return len(self.objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects)

    def __str__(self) -> str:
        return "; ".join(map(str, self.objects))

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical string, in hex."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    @classmethod
    def parse(cls, text: str) -> Scene:
        """Reads what `str(scene)` wrote.

        Raises:
            SceneError: `text` is no canonical string of a scene.
        """
        objects = []
        for part in text.split("; "):
            cell, _, words = part.partition(":")
            fields = words.split(" ")
            if len(cell) != 2 or not (cell.isascii() and cell.isdigit()) or len(fields) != 3:
                raise SceneError(f"{part!r} is not of the form '<row><col>:<size> <colour> <shape>'")
            objects.append(Object(int(cell[0]), int(cell[1]), fields[2], fields[1], fields[0]))
        return cls(objects)


def single_object_scenes() -> Iterator[Scene]:
    """Every scene of one object, in a fixed order."""
    for row, col, shape, colour, size in product(range(GRID), range(GRID), SHAPES, COLOURS, SIZES):
        yield Scene([Object(row, col, shape, colour, size)])


def sample_object(rng: np.random.Generator, cell: tuple[int, int]) -> Object:
    """An object with uniform shape, colour and size in `cell`."""
    shape, colour, size = (x[int(rng.integers(len(x)))] for x in (SHAPES, COLOURS, SIZES))
    return Object(*cell, shape, colour, size)


def sample_scene(
    rng: np.random.Generator, n_objects: int | None = None, weights: Sequence[float] = COUNT_WEIGHTS
) -> Scene:
    """A scene of `n_objects`, or of a number drawn with `weights` (shares of 1 to 4); all else uniform."""
    if n_objects is None:
        n_objects = 1 + int(np.searchsorted(np.cumsum(weights)[:-1], rng.random(), side="right"))
    cells = list(range(GRID * GRID))
    chosen = [cells.pop(int(rng.integers(len(cells)))) for _ in range(n_objects)]
    return Scene(sample_object(rng, divmod(cell, GRID)) for cell in chosen)
