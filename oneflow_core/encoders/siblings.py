"""Batches that make a contrastive loss look closely: scenes in near-identical pairs, with exact truth of each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from oneflow_core.shapes import COLOURS, GRID, SHAPES, SIZES, Object, Scene, split_of
from oneflow_core.shapes.phrases import Mention
from oneflow_core.shapes.scene import MAX_OBJECTS

ANY, NOTHING = -1, -2
VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}


def sibling(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that differs in one thing: an attribute, a place, or two objects that changed places."""
    things = list(scene)
    chosen = int(rng.integers(len(things)))
    thing = things[chosen]
    kind = str(rng.choice(["shape", "colour", "size", "place", "swap"]))
    if kind == "swap" and len(things) > 1:
        other = (chosen + 1 + int(rng.integers(len(things) - 1))) % len(things)
        row, col = things[other].cell
        things[other] = replace(things[other], row=thing.row, col=thing.col)
        things[chosen] = replace(thing, row=row, col=col)
    elif kind in VALUES:
        others = [v for v in VALUES[kind] if v != getattr(thing, kind)]
        things[chosen] = _changed(thing, kind, others[int(rng.integers(len(others)))])
    else:
        taken = {o.cell for o in things}
        free = [divmod(c, GRID) for c in range(GRID * GRID) if divmod(c, GRID) not in taken]
        row, col = free[int(rng.integers(len(free)))]
        things[chosen] = replace(thing, row=row, col=col)
    return Scene(things)


def _changed(thing: Object, attribute: str, value: str) -> Object:
    fields = {"shape": thing.shape, "colour": thing.colour, "size": thing.size, attribute: value}
    return Object(thing.row, thing.col, **fields)


def sibling_in_training(scene: Scene, rng: np.random.Generator) -> Scene:
    """A sibling that belongs to the training split, as `scene` does."""
    while True:
        if split_of(other := sibling(scene, rng)) == "train":
            return other


def truth(texts: Sequence[Sequence[Mention]], scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """Which text's mentions fit which scene's objects one to one, all that is said being true: bool [scenes, texts]."""
    said = np.array([_rows([_said(m) for m in text]) for text in texts])[None, :, :, None]
    real = np.array([_rows([_place_and_look(o) for o in scene]) for scene in scenes])[:, None, None, :]
    fits = ((said == ANY) | (said == real)).all(-1)
    orders = np.array(list(permutations(range(MAX_OBJECTS))))
    result: NDArray[np.bool_] = fits[:, :, np.arange(MAX_OBJECTS), orders].all(-1).any(-1)
    return result


def cell_labels(scenes: Sequence[Scene]) -> NDArray[np.int64]:
    """Shape, colour and size of what is in each cell, 0 where it is empty: int64 [len(scenes), 9, 3]."""
    labels = np.zeros((len(scenes), GRID * GRID, 3), np.int64)
    for row, scene in zip(labels, scenes, strict=True):
        for thing in scene:
            row[thing.row * GRID + thing.col] = _numbers(thing)
    return labels


def _numbers(thing: Object) -> tuple[int, int, int]:
    return SHAPES.index(thing.shape) + 1, COLOURS.index(thing.colour) + 1, SIZES.index(thing.size) + 1


def _place_and_look(thing: Object) -> list[int]:
    return [thing.row + 1, thing.col + 1, *_numbers(thing)]


def _said(mention: Mention) -> list[int]:
    names = [
        ANY if value is None else values.index(value) + 1
        for value, values in (
            (mention.row, tuple(range(GRID))),
            (mention.col, tuple(range(GRID))),
            (mention.shape, SHAPES),
            (mention.colour, COLOURS),
            (mention.size, SIZES),
        )
    ]
    return names


def _rows(rows: list[list[int]]) -> NDArray[np.int64]:
    """Padded with rows that fit one another and nothing else."""
    if not rows or len(rows) > MAX_OBJECTS:
        return np.full((MAX_OBJECTS, 5), NOTHING)
    return np.array(rows + [[0] * 5] * (MAX_OBJECTS - len(rows)))
