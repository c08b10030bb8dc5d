"""A language of seven short texts, all its corruptions, and what perfect heads say of each (METHOD 7.1).

Shapes: S slots of a state (BOS and the tokens that are there), V symbols of the vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import comb

import numpy as np
from numpy.typing import NDArray

from oneflow_core.packing import Example
from tests.core.corruptions import corrupt, elements_of, objective
from tests.core.words import TINY, sample, text

Ids = tuple[int, ...]
Bags = tuple[Ids, ...]
"""What is missing right of BOS and of each token that is there."""
Corruption = tuple[Ids, Bags]
Law = Mapping[Corruption, float]

VOCABULARY = 5
"""BOS, the anchor of images, and three symbols."""
LANGUAGE: Mapping[Ids, float] = {
    (): 0.08,
    (2,): 0.12,
    (2, 2): 0.14,
    (2, 3): 0.20,
    (3, 2, 2): 0.16,
    (4, 3): 0.10,
    (2, 3, 2, 4): 0.12,
    (3, 3, 3): 0.08,
}
"""Its repeated symbols make one state arise from one text in several ways, with other bags each time."""


@dataclass(frozen=True)
class Optimum:
    """The closed form at one state."""

    chance: float
    """Of the state itself, among all corruptions."""
    pi_S: NDArray[np.float64]
    total_S: NDArray[np.float64]
    """lambda* = E[k]."""
    nonzero_S: NDArray[np.float64]
    """E[k | k > 0]; nan where nothing is ever missing."""
    tokens_SV: NDArray[np.float64]
    """Q*: expected counts of the bag over their sum; nan where nothing is ever missing."""


def corruptions(time: float | None = None) -> dict[Corruption, float]:
    """The chance of each (state, bags) at text time `time`; None: under t ~ U[0, 1].

    Each token is there with probability t. Averaged over t, keeping m given ones of n has chance 1 / ((n+1) C(n, m)).
    """
    law: dict[Corruption, float] = defaultdict(float)
    for whole, p in LANGUAGE.items():
        n = len(whole)
        for keep in product((False, True), repeat=n):
            m = sum(keep)
            chance = 1 / ((n + 1) * comb(n, m)) if time is None else time**m * (1 - time) ** (n - m)
            law[cut(whole, keep)] += p * chance
    return {corruption: p for corruption, p in law.items() if p > 0}


def cut(whole: Ids, keep: tuple[bool, ...]) -> Corruption:
    """What is left of a text, and what is missing right of BOS and of each token left."""
    state: list[int] = []
    bags: list[list[int]] = [[]]
    for token, kept in zip(whole, keep, strict=True):
        if kept:
            state.append(token)
            bags.append([])
        else:
            bags[-1].append(token)
    return tuple(state), tuple(tuple(b) for b in bags)


def optima(law: Law) -> dict[Ids, Optimum]:
    """pi*, lambda*, lambda_nonzero* and Q* at every state, by summing over what could be missing there."""
    found: dict[Ids, Optimum] = {}
    for state in sorted({s for s, _ in law}):
        bags_of = {bags: p for (s, bags), p in law.items() if s == state}
        chance = sum(bags_of.values())
        empty_S, histogram_SV = np.zeros(len(state) + 1), np.zeros((len(state) + 1, VOCABULARY))
        for bags, p in bags_of.items():
            for slot, bag in enumerate(bags):
                empty_S[slot] += (not bag) * p / chance
                for token in bag:
                    histogram_SV[slot, token] += p / chance
        total_S = histogram_SV.sum(1)
        with np.errstate(invalid="ignore"):
            nonzero_S = np.where(total_S > 0, total_S / (1 - empty_S), np.nan)
            tokens_SV = histogram_SV / total_S[:, None]
        found[state] = Optimum(chance, empty_S, total_S, nonzero_S, tokens_SV)
    return found


def least_loss(law: Law, counts: str) -> float:
    """The expected loss of perfect heads: that of the closed form, summed over all corruptions."""
    best, loss = optima(law), 0.0
    for (state, bags), p in law.items():
        o = best[state]
        for slot, bag in enumerate(bags):
            k = len(bag)
            if counts == "plain":
                count = o.total_S[slot] - (k * np.log(o.total_S[slot]) if k else 0.0)
            elif k:
                count = o.nonzero_S[slot] - k * np.log(o.nonzero_S[slot]) - np.log(1 - o.pi_S[slot])
            else:
                count = -np.log(o.pi_S[slot])
            loss += p * (count - sum(np.log(o.tokens_SV[slot, t]) for t in bag))
    return float(loss)


DRAWS = 6000


@cache
def drawn() -> tuple[Counter[Corruption], dict[Corruption, Example]]:
    """How often the objective made each corruption in `DRAWS` texts of the language, and one example of each."""
    rng, made = np.random.default_rng(0), objective(replace(TINY, vocab_size=VOCABULARY))
    documents = [sample(text(list(whole))) for whole in LANGUAGE]
    seen: Counter[Corruption] = Counter()
    examples: dict[Corruption, Example] = {}
    for number in rng.choice(len(documents), size=DRAWS, p=list(LANGUAGE.values())):
        example = corrupt(made, documents[number], rng)
        _, tokens, bags = elements_of(example)
        key = tuple(tokens[1:]), tuple(tuple(bag) for bag in bags)
        seen[key] += 1
        examples[key] = example
    return seen, examples
