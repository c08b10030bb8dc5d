"""The sampler under perfect heads: the tables of METHOD 7.2 and 7.4, and the law of a small language."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from tests.core.oracle import Oracle, Said, write
from tests.core.test_length_law import LONGEST, heads
from tests.core.toy_language import LANGUAGE, VOCABULARY, Ids, Optimum, corruptions, optima


def one_text(length: int) -> Oracle:
    """Knows that the text is 2, 3, ..., so that the counts and bags are those of METHOD 7.4's oracle."""

    def knows(state: Ids, _: float) -> Said:
        edges = np.array([1, *state, length + 2])
        missing_S = np.diff(edges) - 1
        ids_V = np.arange(length + 2)
        bag_SV = (ids_V > edges[:-1, None]) & (ids_V < edges[1:, None])
        nothing_S1 = (missing_S == 0)[:, None]
        return Said((missing_S == 0) * 1.0, np.maximum(missing_S, 1.0), (bag_SV | nothing_S1) * 1.0)

    return Oracle(length + 2, knows)


@cache
def missing(gap: int, steps: int) -> float:
    """Expected tokens never said of a gap of `gap`, `steps` before the end: at most one arrives, and splits it."""
    if not gap or not steps:
        return float(gap)
    fires = min(1.0, gap / steps)
    split = 2 / gap * sum(missing(part, steps - 1) for part in range(gap))
    return (1 - fires) * missing(gap, steps - 1) + fires * split


TABLE = {
    12: (0.31, 0.047, 0.002, 0, 0, 0, 0),
    32: (0.65, 0.28, 0.076, 0.002, 0, 0, 0),
    64: (0.81, 0.51, 0.22, 0.013, 0, 0, 0),
    128: (0.89, 0.69, 0.42, 0.055, 0.003, 0, 0),
    256: (0.95, 0.83, 0.59, 0.15, 0.011, 0, 0),
}
"""METHOD 7.4, a simulation: shares still missing after 4, 6, 8, 12, 16, 25 and 50 steps."""


@pytest.mark.parametrize("length", TABLE)
def test_the_table_of_7_4_is_the_recursion_over_splitting_gaps(length: int) -> None:
    exact = [missing(length, steps) / length for steps in (4, 6, 8, 12, 16, 25, 50)]
    assert exact == pytest.approx(TABLE[length], abs=0.016)


@pytest.mark.parametrize(("length", "steps"), [(12, 4), (12, 6), (32, 6), (64, 8), (128, 12), (32, 25)])
def test_the_sampler_leaves_as_much_unsaid_as_the_recursion_says(length: int, steps: int) -> None:
    texts = [g.trace.token for g in write(one_text(length), 400, steps=steps)]
    assert all((np.diff(ids) > 0).all() for ids in texts)
    left = 1 - np.array([len(ids) for ids in texts]) / length
    assert left.mean() == pytest.approx(missing(length, steps) / length, abs=4 * left.std() / 20 + 1e-3)


@pytest.mark.parametrize(
    ("told", "steps", "mean", "deviation"),
    [(True, 10, 11.9, 2.6), (True, 50, 12.1, 2.9), (False, 10, 13.3, 1.6), (False, 50, 15.1, 1.7)],
)
def test_lengths_are_those_of_the_table_of_7_2(told: bool, steps: int, mean: float, deviation: float) -> None:
    """Texts of about 12 equal tokens, by the mean rule, their posterior that of `test_length_law`."""
    law = cache(heads)

    def knows(state: Ids, time: float) -> Said:
        slots = len(state) + 1
        pi, rate = law(min(len(state), LONGEST), round(time, 6) if told else None)
        return Said(np.full(slots, pi), np.full(slots, rate), np.tile([0.0, 0.0, 1.0], (slots, 1)))

    made = write(Oracle(3, knows, told), 400, steps=steps, fire="mean")
    lengths = np.array([len(g.trace.token) for g in made])
    assert lengths.mean() == pytest.approx(mean, abs=0.35)
    assert lengths.std() == pytest.approx(deviation, abs=0.35)


def speaker(told: bool) -> Oracle:
    """Says the closed form of the toy language; of what is no part of any text, that nothing is missing."""

    @cache
    def known(time: float | None) -> dict[Ids, Optimum]:
        return optima(corruptions(time))

    def knows(state: Ids, time: float) -> Said:
        best = known(round(time, 6) if told else None).get(state)
        if best is None:
            slots = len(state) + 1
            return Said(np.ones(slots), np.ones(slots), np.ones((slots, VOCABULARY)))
        return Said(best.pi_S, *(np.nan_to_num(x, nan=1.0) for x in (best.nonzero_S, best.tokens_SV)))

    return Oracle(VOCABULARY, knows, told)


def shares(told: bool, steps: int, count: int) -> dict[Ids, float]:
    """Texts that were written, and how often."""
    found = Counter(g.trace.token for g in write(speaker(told), count, steps=steps))
    return {text: n / count for text, n in found.items()}


def test_told_the_time_perfect_heads_write_the_language_as_it_is_spoken() -> None:
    """The flow's end law is the data's, up to the step: what is no text falls off like 1 / steps."""
    coarse, fine = shares(True, 10, 600), shares(True, 80, 1000)
    strange = [sum(p for text, p in found.items() if text not in LANGUAGE) for found in (coarse, fine)]
    assert strange[0] > 0.06 and strange[1] < 0.03
    for text, p in LANGUAGE.items():
        deviation = (p * (1 - p) / 1000) ** 0.5
        assert fine.get(text, 0.0) == pytest.approx(p, abs=3.5 * deviation + strange[1]), text


def test_blind_to_the_time_they_write_more_than_there_is() -> None:
    spoken = sum(p * len(text) for text, p in LANGUAGE.items())
    told, blind = (sum(p * len(t) for t, p in shares(told, 40, 400).items()) for told in (True, False))
    assert told == pytest.approx(spoken, abs=0.12)
    assert blind > spoken + 0.3
