"""Metrics against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.metrics.control import chance, derangement, shuffled
from oneflow_core.metrics.interval import mean, ratio
from oneflow_core.metrics.length import length_ratio

NUMBERS = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@settings(deadline=None)
@given(NUMBERS)
def test_the_mean_lies_in_its_interval_of_resampled_means(values: list[float]) -> None:
    estimate = mean(values)
    assert math.isclose(estimate.value, sum(values) / len(values), abs_tol=1e-9)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert estimate.count == len(values) and mean(values) == estimate


def test_the_interval_is_as_wide_as_theory_says() -> None:
    values = [1.0] * 120 + [0.0] * 280
    estimate, error = mean(values), math.sqrt(0.3 * 0.7 / 400)
    assert estimate.value == 0.3
    assert (
        abs(estimate.low - (0.3 - 1.96 * error)) < 0.01 and abs(estimate.high - (0.3 + 1.96 * error)) < 0.01
    )


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.random((200, 60)) < 0.4
    covered = [
        e.low <= 0.4 <= e.high for e in (mean(list(map(float, s)), seed=i) for i, s in enumerate(samples))
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_items_of_a_group_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(1)
    once = [float(x) for x in rng.random(50) < 0.5]
    names = [str(i) for i in range(50)]
    single, eightfold = mean(once, names), mean(once * 8, names * 8)
    assert (single.value, single.low, single.high) == (eightfold.value, eightfold.low, eightfold.high)
    assert eightfold.count == 400 and single.low == pytest.approx(mean(once).low, abs=0.03)
    naive = mean(once * 8)
    assert naive.high - naive.low < 0.5 * (eightfold.high - eightfold.low)


def test_no_items_give_no_number() -> None:
    assert math.isnan(mean([]).value) and mean([]).count == 0
    assert math.isnan(ratio([1.0], [0.0]).value)
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError):
        mean([1.0, 2.0], ["a"])


def test_the_length_ratio_is_of_sums() -> None:
    estimate = length_ratio(["a red circle", "a b c d e", ""], [3, 2, 5])
    assert estimate.value == 8 / 10 and estimate.low < estimate.value < estimate.high


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32))
def test_nothing_stays_in_place(count: int, seed: int) -> None:
    order = derangement(count, np.random.default_rng(seed))
    assert sorted(order) == list(range(count))
    assert all(i != place for place, i in enumerate(order))


def test_shuffling_tells_a_reader_from_one_who_guesses() -> None:
    rng = np.random.default_rng(0)
    truths = [str(i % 4) for i in range(200)]

    def score(a: str, b: str) -> dict[str, float]:
        return {"right": float(a == b)} | ({"zero": float(b == "0")} if a == "0" else {})

    found = shuffled(truths, truths, score, rng)
    assert abs(found["right"] - 49 / 199) < 0.05 and abs(found["zero"] - 49 / 199) < 0.1
    assert abs(chance(truths, lambda _, r: str(r.integers(4)), score, rng)["right"] - 0.25) < 0.05
    assert shuffled(["0"], ["0"], score, rng) == {} == chance([], lambda _, r: "", score, rng)
