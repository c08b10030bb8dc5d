"""Wrong tokens among those of a document, so that a network without counts learns to take out what it put in wrongly.

Shapes: E elements of the clean order, P wrong tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneflow_core.layout import TOKEN, Elements, join

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def spoil(
    clean: Elements, keep_E: BoolArray, mean: float, words: IntArray, rng: np.random.Generator
) -> tuple[Elements, BoolArray, BoolArray]:
    """The clean order with wrong tokens in it: all elements, which of them are there, and which are wrong (ours).

    A Poisson number of them, `mean` for each token that is asked for, stands at random places where the sampler can
    insert, whether anything is missing there or not; all are there, and each starts a gap of its own. So what is
    missing belongs to the gap of its nearest element on the left, wrong or not, and as the place tells nothing, the
    optimal pi and Q at a wrong element are averages over the places where it may stand: P(something is missing
    between it and the next | all that is there), and the share of each token in what is. Half of the tokens are the
    document's own, as duplicates are what the sampler does wrong most (METHOD section 8), half are any of `words`.
    """
    asked_E = ~clean.prompt_E & (clean.kind_E == TOKEN)
    own = clean.token_E[asked_E]
    count = int(rng.poisson(mean * len(own)))
    token_P = _tokens(own, words, count, rng)
    place_P = _behind_equals(
        clean, asked_E & keep_E, rng.choice(np.flatnonzero(clean.slot_E), count), token_P
    )
    order = np.argsort(place_P, kind="stable")
    whole = _with(clean, place_P[order], token_P[order])
    where = place_P[order] + 1
    spurious_E = np.insert(np.zeros(len(clean), bool), where, True)
    return whole, np.insert(keep_E, where, True), spurious_E


def labels(kept: Elements, spurious_E: BoolArray) -> IntArray:
    """For each slot of what is there: 1 where its element is wrong, 0 where it is right, -1 for prompts and images."""
    asked_E = ~kept.prompt_E & (kept.kind_E == TOKEN)
    label_S: IntArray = np.where(asked_E, spurious_E.astype(np.int64), -1)[kept.slot_E]
    return label_S


def _tokens(own: IntArray, words: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Half of the document's own tokens, half of all words."""
    if not count:
        return np.zeros(0, np.int64)
    token_P: IntArray = np.where(rng.random(count) < 0.5, rng.choice(own, count), rng.choice(words, count))
    return token_P


def _behind_equals(clean: Elements, right_E: BoolArray, place_P: IntArray, token_P: IntArray) -> IntArray:
    """Places from which each wrong token stands behind equal ones that are there and right.

    Which of two equal neighbours is wrong has no answer: an optimum of 1/2 for both would take out both or neither.
    """
    moved_P = place_P.copy()
    for p, token in enumerate(token_P.tolist()):
        while (
            moved_P[p] + 1 < len(clean) and right_E[moved_P[p] + 1] and clean.token_E[moved_P[p] + 1] == token
        ):
            moved_P[p] += 1
    return moved_P


def _with(clean: Elements, place_P: IntArray, token_P: IntArray) -> Elements:
    """The elements with a token of its own slot behind each place; places must ascend."""
    count = len(place_P)
    added = Elements(
        clean.document_E[place_P],
        np.full(count, TOKEN),
        token_P,
        np.full(count, -1),
        np.zeros(count, bool),
        np.ones(count, bool),
        clean.copy_E[place_P],
    )
    order = np.argsort(np.r_[np.arange(len(clean)), place_P + 0.5], kind="stable")
    return join([clean, added]).take(order)
