"""Controls that stand beside a figure: what it is when prompts and outputs do not belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

Asked = TypeVar("Asked")
Made = TypeVar("Made")


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
    score: Callable[[Asked, Made], float],
    rng: np.random.Generator,
    rounds: int = 5,
) -> float:
    """Mean score when what was made for one item is held against another; NaN for fewer than two items."""
    if len(asked) < 2:
        return float("nan")
    orders = [derangement(len(asked), rng) for _ in range(rounds)]
    return float(np.mean([score(a, made[i]) for order in orders for a, i in zip(asked, order, strict=True)]))


def chance(
    asked: Sequence[Asked],
    draw: Callable[[Asked, np.random.Generator], Made],
    score: Callable[[Asked, Made], float],
    rng: np.random.Generator,
    rounds: int = 20,
) -> float:
    """Mean score of `draw`, which makes something well-formed without looking at what was asked; NaN for none."""
    if not asked:
        return float("nan")
    return float(np.mean([score(a, draw(a, rng)) for _ in range(rounds) for a in asked]))
