"""What training may see: scenes, pairs of shape and colour, and triples with a position that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np

from oneflow_core.shapes.scene import COLOURS, COUNT_WEIGHTS, GRID, SHAPES, Object, Scene, sample_scene

Split = Literal["train", "heldout_random", "heldout_pair", "heldout_triple"]
SPLITS: tuple[Split, ...] = ("train", "heldout_random", "heldout_pair", "heldout_triple")
HELDOUT_PAIRS = frozenset({("star", "blue"), ("ring", "red"), ("triangle", "green")})
TRIPLE_SHARE = 0.04
RANDOM_SHARE = 0.05


def _chance(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


HELDOUT_TRIPLES = frozenset(
    (shape, colour, row, col)
    for shape, colour, row, col in product(SHAPES, COLOURS, range(GRID), range(GRID))
    if (shape, colour) not in HELDOUT_PAIRS and _chance(f"triple/{shape}/{colour}/{row}{col}") < TRIPLE_SHARE
)


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to: the rarest reason wins, pair before triple before the random share."""
    if any(is_heldout_pair(o.shape, o.colour) for o in scene):
        return "heldout_pair"
    if any(_is_heldout_triple(o) for o in scene):
        return "heldout_triple"
    return "heldout_random" if _chance(f"scene/{scene}") < RANDOM_SHARE else "train"


def is_heldout_pair(shape: str, colour: str) -> bool:
    """Whether training never sees (nor reads of) an object of this shape in this colour."""
    return (shape, colour) in HELDOUT_PAIRS


def _is_heldout_triple(thing: Object) -> bool:
    return (thing.shape, thing.colour, thing.row, thing.col) in HELDOUT_TRIPLES


def sample_in_split(
    rng: np.random.Generator,
    split: Split,
    n_objects: int | None = None,
    weights: Sequence[float] = COUNT_WEIGHTS,
) -> Scene:
    """A scene of `split`, by rejection; the number of objects keeps its law within the split.

    The number is drawn first, so that held-out scenes are not biased to many objects.
    """
    if n_objects is None:
        n_objects = len(sample_scene(rng, weights=weights))
    while True:
        scene = sample_scene(rng, n_objects)
        if split_of(scene) == split:
            return scene
