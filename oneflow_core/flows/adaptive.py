"""The adaptive schedule: kappa fitted so that the loss of a missing token falls at equal pace (ours).

The paper leaves open which schedule is best. As in the time warping of CDCD (Dieleman et al., arXiv 2211.15089), time
is spent where the loss changes. Let u be the share of elements that is there and L(u) the mean cross-entropy of a
missing one, made to fall, and r = `RIDGE`. With

    F(u) = (L(0) - L(u) + r u) / (L(0) - L(1) + r),    t(u) = (1 - s) u + s F(u),    kappa = (1 - f) t^-1 + f t,

s the share of the fit and f = `FLOOR`, kappa' lies in [f, f + (1 - f) / (1 - s)], whatever was measured. Where L is
flat or falls straight, kappa(t) = t exactly. Under t^-1 alone, with s = 1, L(kappa(t)) is straight in t but for r.

Shapes: B bins of u, K missing tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.schedule import FloatArray, Schedule, Table

BINS = 20
STEPS = 10
"""Equal steps of t in a fitted table."""
FLOOR = 0.2
"""Least slope of kappa."""
RIDGE = 0.2
"""A straight fall, in nats, added to the measured one: much smaller ones are noise, and leave kappa straight."""
DIGITS = 3
"""Decimals of a table's values. Coarse on purpose: sums over other workers, or on another machine, differ in their last
bits and make the same table still."""


def tally(schedule: Schedule, clock_K: NDArray[np.float32], nll_K: Tensor) -> Tensor:
    """Sums of one pack by bins of u = kappa(min(1, clock)): missing tokens, their u, their loss; [3, B] float64.

    Args:
        schedule: kappa that the pack was corrupted under.
        clock_K: text clock of each missing token's document.
        nll_K: its cross-entropy, on any device; the result is there too. No host sync.
    """
    u_K = schedule.kappa(np.clip(clock_K.astype(np.float64), 0.0, 1.0))
    bin_K = np.minimum((u_K * BINS).astype(np.int64), BINS - 1)
    device = nll_K.device
    held_KB = torch.nn.functional.one_hot(torch.from_numpy(bin_K), BINS).double().to(device)
    u = torch.from_numpy(u_K).to(device)
    return torch.stack([torch.ones_like(u), u, nll_K.detach().double()]) @ held_KB


def fit(sums_3B: FloatArray, share: float) -> Table:
    """The table of sums that `tally` made; straight where they say too little (fewer than two bins with a token).

    Args:
        sums_3B: tallies added up, old ones perhaps forgotten in part.
        share: s, from 0 (linear) to below 1.
    """
    count_B, share_B, loss_B = sums_3B
    told = (count_B >= 1) & np.isfinite(loss_B)
    grid = np.linspace(0, 1, STEPS + 1)
    u, fall = _fall(share_B[told] / count_B[told], loss_B[told] / count_B[told], count_B[told])
    inverse = np.interp(grid, (1 - share) * u + share * fall, u)
    values = np.round((1 - FLOOR) * inverse + FLOOR * grid, DIGITS)
    return Table(tuple(float(v) for v in values))


def _fall(u_B: FloatArray, loss_B: FloatArray, weight_B: FloatArray) -> tuple[FloatArray, FloatArray]:
    """F at some u from 0 to 1. Beyond the outer bins L goes straight on."""
    if len(u_B) < 2:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    loss_B = decreasing(loss_B, weight_B)
    slope = np.diff(loss_B)[[0, -1]] / np.diff(u_B)[[0, -1]]
    first, last = loss_B[0] - slope[0] * u_B[0], loss_B[-1] + slope[1] * (1 - u_B[-1])
    u, loss = np.r_[0.0, u_B, 1.0], np.r_[first, loss_B, last]
    return u, (first - loss + RIDGE * u) / (first - last + RIDGE)


def decreasing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The sequence that never rises and is nearest to `values` in weighted squares: pool adjacent violators."""
    means, held, sizes = list[float](), list[float](), list[int]()
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while means and means[-1] <= value:
            total = held[-1] + weight
            value, weight = (means.pop() * held.pop() + value * weight) / total, total
            size += sizes.pop()
        means.append(value)
        held.append(weight)
        sizes.append(size)
    return np.repeat(means, sizes)
