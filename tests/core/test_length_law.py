"""Blind to the time, a sampler writes too long, the more so the more steps it takes (METHOD 7.2).

A toy without content: texts of about 12 equal tokens, exact posteriors in place of a network. With m tokens there, a
whole of length n has weight p(n) C(n, m) (1 - t)^n if the time is known, and p(n) / (n + 1) if it was averaged over
t ~ U[0, 1]; where among the m + 1 gaps the n - m missing tokens are is uniform.
"""

from __future__ import annotations

from functools import cache
from math import comb

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oneflow_core.flows.insertion import FireRule, fire_probability
from oneflow_core.flows.schedule import Linear, arrival_probability

LONGEST = 40
LENGTHS = np.arange(LONGEST + 1)
PRIOR = np.exp(-0.5 * ((LENGTHS - 12) / 3) ** 2) * (LENGTHS > 0)
CHOOSE = np.array([[float(comb(n, m)) for m in LENGTHS] for n in LENGTHS])


@cache
def gap(m: int) -> NDArray[np.float64]:
    """P(k missing in one gap | n), [n, k], for m tokens that are there: compositions of n - m into m + 1 gaps."""
    law = np.zeros((LONGEST + 1, LONGEST + 1))
    for n in range(m, LONGEST + 1):
        missing = n - m
        for k in range(missing + 1):
            rest = comb(missing - k + m - 1, m - 1) if m else float(k == missing)
            law[n, k] = rest / comb(missing + m, m)
    return law


def heads(m: int, t: float | None) -> tuple[float, float]:
    """pi and lambda_nonzero of a gap: P(k = 0) and E[k | k > 0]."""
    weight = PRIOR / (LENGTHS + 1) if t is None else PRIOR * CHOOSE[:, m] * (1 - t) ** LENGTHS
    weight = np.where(m <= LENGTHS, weight, 0.0)
    if weight.sum() == 0:
        return 1.0, 1.0
    law = weight @ gap(m) / weight.sum()
    return float(law[0]), float(law @ LENGTHS / max(1e-300, 1 - law[0]))


def lengths(steps: int, told: bool, rule: FireRule = "mean", count: int = 1500) -> NDArray[np.int64]:
    """Lengths at t = 1 of `count` texts, by a fire rule of the sampler."""
    rng = np.random.default_rng(steps)
    made = np.zeros(count, np.int64)
    for step in range(steps):
        t = step / steps
        rho = float(arrival_probability(Linear(), np.array(t), np.array(1 / steps)))
        before = made.copy()
        for m in np.unique(before):
            pi, rate = heads(min(int(m), LONGEST), t if told else None)
            head = (torch.tensor(x, dtype=torch.float64) for x in (pi, rate, rho))
            fire = float(fire_probability(*head, rule))
            mine = before == m
            made[mine] = np.minimum(LONGEST, m + rng.binomial(m + 1, fire, mine.sum()))
    return made


@pytest.mark.parametrize(
    ("steps", "told", "mean", "deviation"),
    [
        (10, True, 11.9, 2.6),
        (50, True, 12.1, 2.9),
        (10, False, 13.3, 1.6),
        (50, False, 15.1, 1.7),
        (200, False, 16.4, 1.7),
    ],
)
def test_the_law_of_lengths_is_that_of_the_table(
    steps: int, told: bool, mean: float, deviation: float
) -> None:
    found = lengths(steps, told)
    assert found.mean() == pytest.approx(mean, abs=0.3)
    assert found.std() == pytest.approx(deviation, abs=0.3)


def test_the_gate_keeps_few_steps_from_writing_too_long() -> None:
    """It caps firing at 1 - pi, which matters where rho is large: the table, by the mean rule, has 13.3 here."""
    assert lengths(10, told=False, rule="gate").mean() == pytest.approx(12.8, abs=0.2)
