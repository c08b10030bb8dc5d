"""Controls that stand beside a figure: what it is when prompts and outputs do not belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Asked = TypeVar("Asked")
Made = TypeVar("Made")
Scores = Mapping[str, float]
"""Scores of one item by name; a score that does not apply to it is absent."""


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """A random permutation of range(count) in one cycle, so that nothing stays in place (Sattolo 1986).

    Raises:
        ValueError: fewer than two, of which none can move.
    """
    if count < 2:
        raise ValueError(f"{count} items cannot be shuffled so that none stays; give at least two")
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def shuffled(
    asked: Sequence[Asked],
    made: Sequence[Made],
    score: Callable[[Asked, Made], Scores],
    rng: np.random.Generator,
    rounds: int = 5,
) -> dict[str, float]:
    """Mean scores when what was made for one item is held against another; none for fewer than two items."""
    if len(asked) < 2:
        return {}
    orders = [derangement(len(asked), rng) for _ in range(rounds)]
    return means(score(a, made[i]) for order in orders for a, i in zip(asked, order, strict=True))


def chance(
    asked: Sequence[Asked],
    draw: Callable[[Asked, np.random.Generator], Made],
    score: Callable[[Asked, Made], Scores],
    rng: np.random.Generator,
    rounds: int = 5,
) -> dict[str, float]:
    """Mean scores of `draw`, which makes something well-formed without looking at what was asked."""
    return means(score(a, draw(a, rng)) for _ in range(rounds) for a in asked)


def means(scores: Iterable[Scores]) -> dict[str, float]:
    """Means by name, each over those that have the score."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in scores:
        for name, value in one.items():
            values[name].append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}
