"""The fitted schedule: exact where the answer is known, bounded whatever was measured, tallied as a loop does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, isotonic_regression

from oneflow_core.flows.adaptive import BINS, FLOOR, RIDGE, STEPS, decreasing, fit, tally
from oneflow_core.flows.schedule import Linear, Table, build_schedule

Curve = Callable[[np.ndarray], np.ndarray]
LINEAR = tuple(round(j / STEPS, 3) for j in range(STEPS + 1))


def sums(loss: Curve, draws: int = 40) -> np.ndarray:
    """What a long run would have tallied were its losses exactly `loss(u)`."""
    u = (np.arange(BINS * draws) + 0.5) / (BINS * draws)
    w = 1 - u
    return np.stack([(x * w).reshape(BINS, draws).sum(1) for x in (np.ones_like(u), u, loss(u))])


@pytest.mark.parametrize("loss", [lambda u: 3 + 0 * u, lambda u: 5 - 2 * u, lambda u: 1 + u])
def test_a_loss_that_is_flat_or_straight_gives_the_linear_schedule(loss: Curve) -> None:
    assert fit(sums(loss), 0.5).values == LINEAR
    assert fit(np.zeros((3, BINS)), 0.5).values == LINEAR


def test_noise_on_a_flat_loss_hardly_moves_the_schedule() -> None:
    rng = np.random.default_rng(0)
    table = fit(sums(lambda u: 3 + 0.01 * rng.standard_normal(u.shape)), 0.5)
    assert table.values == pytest.approx(LINEAR, abs=0.02)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_kappa_inverts_the_fall_of_the_loss(share: float) -> None:
    """L(u) = 7 (1 - u)^2 falls by 7 (1 - (1 - u)^2); t = (1 - s) u + s F(u) is solved by a root finder."""
    table = fit(sums(lambda u: 7 * (1 - u) ** 2), share)
    for j, value in enumerate(table.values):
        t = j / STEPS

        def late(u: float, t: float = t) -> float:
            fall = (7 * (1 - (1 - u) ** 2) + RIDGE * u) / (7 + RIDGE)
            return (1 - share) * u + share * fall - t

        root = brentq(late, 0, 1)
        assert value == pytest.approx((1 - FLOOR) * root + FLOOR * t, abs=0.004)
    assert table.values[STEPS // 2] < 0.5


def test_at_full_share_the_loss_falls_at_equal_pace() -> None:
    def loss(u: np.ndarray) -> np.ndarray:
        return np.asarray(4 * np.exp(-3 * u))

    table = fit(sums(loss), 0.999)
    pure = (np.array(table.values) - FLOOR * table.grid) / (1 - FLOOR)
    falls = -np.diff(loss(pure) - RIDGE * pure)
    assert falls == pytest.approx(np.full(STEPS, falls.mean()), rel=0.1)


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0.0, 20.0)), min_size=BINS, max_size=BINS),
    st.floats(0, 0.95),
)
@settings(deadline=None)
def test_the_slope_is_bounded_whatever_was_measured(bins: list[tuple[float, float]], share: float) -> None:
    count, loss = np.array(bins).T
    centre = (np.arange(BINS) + 0.5) / BINS
    table = fit(np.stack([count, count * centre, count * loss]), share)
    slopes = np.diff(table.values) * STEPS
    rounding = 2 * 0.0005 * STEPS
    assert slopes.min() >= FLOOR - rounding
    assert slopes.max() <= FLOOR + (1 - FLOOR) / (1 - share) + rounding
    assert build_schedule(table.name) == table


def test_bins_without_a_number_are_left_out() -> None:
    known, broken = sums(lambda u: (1 - u) ** 2), sums(lambda u: (1 - u) ** 2)
    broken[2, 3] = np.nan
    broken[:, 7] = 0
    assert fit(broken, 0.5).values == pytest.approx(fit(known, 0.5).values, abs=0.005)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 5)), min_size=1, max_size=12))
@settings(deadline=None)
def test_pooled_violators_against_scipy(pairs: list[tuple[float, float]]) -> None:
    values, weights = np.array(pairs).T
    wanted = isotonic_regression(values, weights=weights, increasing=False).x
    assert decreasing(values, weights) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("schedule", [Linear(), Table((0.0, 0.2, 0.4, 1.0))])
def test_the_tally_against_a_loop(schedule: Linear | Table) -> None:
    rng = np.random.default_rng(0)
    clock, nll = (rng.random(300) * 2).astype(np.float32), torch.from_numpy(rng.random(300)).float()
    wanted = np.zeros((3, BINS))
    for c, n in zip(clock.tolist(), nll.tolist(), strict=True):
        u = float(schedule.kappa(np.array(min(c, 1.0))))
        wanted[:, min(int(u * BINS), BINS - 1)] += [1, u, n]
    assert tally(schedule, clock, nll).numpy() == pytest.approx(wanted, rel=1e-9)
    assert tally(schedule, clock[:0], nll[:0]).sum() == 0
