"""Histories over tokens and seconds against a walk over every single step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.runs.curves import STEP_S, TOKENS_PER_S, Axis, Histories

INTERVALS = st.lists(
    st.tuples(st.integers(1, 9), st.floats(0.01, 5), st.floats(1, 1e5)), min_size=1, max_size=20
)


@given(INTERVALS, st.sampled_from(["tokens", "seconds"]))
def test_the_clock_is_the_sum_over_every_step(intervals: list[tuple[int, float, float]], axis: Axis) -> None:
    step, place = 0, 0.0
    took, speed, truth = [], [], [(0.0, 0.0)]
    for steps, seconds, tokens_per_s in intervals:
        for _ in range(steps):
            step += 1
            place += seconds if axis == "seconds" else seconds * tokens_per_s
            truth.append((float(step), place))
        took.append((float(step), seconds))
        speed.append((float(step), tokens_per_s))
    loss = tuple((s, 1.0) for s, _ in truth)
    held = Histories({STEP_S: tuple(took), TOKENS_PER_S: tuple(speed), "loss": loss})
    assert [p for p, _ in held.over("loss", axis)] == pytest.approx([p for _, p in truth], rel=1e-9)
    assert held.tokens_per_s == pytest.approx(
        sum(n * s * r for n, s, r in intervals) / sum(n * s for n, s, _ in intervals)
    )


def test_the_value_at_a_place_is_the_last_one_before_it() -> None:
    held = Histories({"loss": ((10.0, 3.0), (20.0, 2.0), (30.0, 1.0))})
    assert [held.at("loss", "step", place) for place in (9, 10, 19, 20, 99)] == [None, 3.0, 3.0, 2.0, 1.0]
    assert held.at("none", "step", 5) is None
    assert held.over("loss", "seconds") == ((0.0, 3.0), (0.0, 2.0), (0.0, 1.0))
