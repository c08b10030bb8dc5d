"""Schedules against numerical calculus, and the laws of METHOD 7.6 against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from oneflow_core.flows.schedule import (
    Table,
    arrival_probability,
    build_schedule,
    draw_births,
    image_times,
    logit_normal,
)

NAMES = ["linear", "cosine", "power:2", "power:3", "power:0.5", "table:0.1,0.15,0.6"]


@pytest.mark.parametrize("name", NAMES)
def test_kappa_is_the_integral_of_its_derivative_and_ends_at_one(name: str) -> None:
    schedule = build_schedule(name)
    for t in (0.2, 0.7, 1.0):
        area, _ = quad(lambda x: float(schedule.derivative(np.array(x))), 0, t)
        assert area == pytest.approx(float(schedule.kappa(np.array(t))), abs=1e-6)
    assert float(schedule.kappa(np.array(0.0))) == 0
    assert float(schedule.kappa(np.array(1.0))) == pytest.approx(1)


@given(st.sampled_from(NAMES), st.floats(0.001, 0.999))
@settings(deadline=None)
def test_inverse_against_a_root_finder(name: str, u: float) -> None:
    schedule = build_schedule(name)
    root = brentq(lambda t: float(schedule.kappa(np.array(t))) - u, 0, 1)
    assert float(schedule.inverse(np.array(u))) == pytest.approx(root, abs=1e-8)


@given(st.sampled_from(NAMES), st.floats(0, 0.99), st.floats(0.001, 1))
@settings(deadline=None)
def test_arrival_probability_composes_over_two_half_steps(name: str, t: float, h: float) -> None:
    schedule, h = build_schedule(name), min(h, 1 - t)
    whole = arrival_probability(schedule, np.array(t), np.array(h))
    first = arrival_probability(schedule, np.array(t), np.array(h / 2))
    second = arrival_probability(schedule, np.array(t + h / 2), np.array(h / 2))
    assert 1 - float(whole) == pytest.approx((1 - float(first)) * (1 - float(second)), abs=1e-6)


def test_the_last_step_lets_everything_arrive() -> None:
    for name in NAMES:
        rho = arrival_probability(build_schedule(name), np.array([0.9, 1.0]), np.array([0.1, 0.1]))
        assert rho == pytest.approx([1, 1])


def test_births_follow_kappa() -> None:
    schedule, rng = build_schedule("power:2"), np.random.default_rng(0)
    births = draw_births(schedule, 40_000, rng)
    for t in (0.25, 0.5, 0.9):
        assert (births <= t).mean() == pytest.approx(t**2, abs=0.01)


def test_interleaved_times_have_the_law_of_method_7_6() -> None:
    rng, schedule = np.random.default_rng(1), build_schedule("linear")
    clock = rng.random(100_000) * 2
    t = clock - draw_births(schedule, clock.size, rng)
    each = np.array(
        [float(image_times(c, np.array([c - x]))[0]) for c, x in zip(clock[:500], t[:500], strict=True)]
    )
    assert np.allclose(each, np.minimum(1, t[:500]))
    assert (t < 0).mean() == pytest.approx(0.25, abs=0.006)
    assert (t >= 1).mean() == pytest.approx(0.25, abs=0.006)
    flow = t[(t >= 0) & (t < 1)]
    histogram = np.histogram(flow, bins=10, range=(0, 1))[0] / flow.size
    assert histogram == pytest.approx(np.full(10, 0.1), abs=0.006)
    assert (np.minimum(1, t) <= np.minimum(1, clock) + 1e-12).all()


def test_logit_normal_moments() -> None:
    t = logit_normal(-0.6, 1.0, 50_000, np.random.default_rng(0))
    assert np.log(t / (1 - t)).mean() == pytest.approx(-0.6, abs=0.02)
    assert np.log(t / (1 - t)).std() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "name", ["table:0.5,0.5", "table:", "table:0", "table:0.2,1", "table:a,b", "table:0.9,0.1"]
)
def test_tables_that_do_not_rise_from_0_to_1_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must rise strictly|must be numbers"):
        build_schedule(name)


@given(st.lists(st.integers(1, 999), min_size=1, max_size=9, unique=True))
@settings(deadline=None)
def test_a_table_is_read_back_from_its_name(cuts: list[int]) -> None:
    table = Table((0.0, *(c / 1000 for c in sorted(cuts)), 1.0))
    assert build_schedule(table.name) == table


@pytest.mark.parametrize("name", ["quadratic", "power", "power:0", "power:-1", "linear:2", "power:x"])
def test_unknown_schedules_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="is none of: linear, cosine"):
        build_schedule(name)
