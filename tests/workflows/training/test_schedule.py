"""Learning rate and progress against their closed forms."""

from __future__ import annotations

import math

import pytest

from workflows.training.config import BudgetSettings, OptimiserSettings
from workflows.training.schedule import ema_decay, learning_rate, progress


def test_progress_is_the_further_of_steps_and_minutes() -> None:
    budget = BudgetSettings(steps=100, max_minutes=2)
    assert progress(10, 12, budget) == 0.1
    assert progress(10, 60, budget) == 0.5
    assert progress(100, 0, budget) == 1.0
    assert progress(1, 121, budget) > 1
    assert progress(50, 1e9, BudgetSettings(steps=100)) == 0.5


def test_cosine_begins_at_the_peak_and_ends_at_the_floor_whatever_the_clock() -> None:
    settings = OptimiserSettings(lr=0.1, warmup_steps=10, floor=0.1)
    assert learning_rate(0, 0.0, settings) == pytest.approx(0.01)
    assert learning_rate(9, 0.0, settings) == pytest.approx(0.1)
    assert learning_rate(500, 0.5, settings) == pytest.approx(0.1 * (0.1 + 0.9 / 2))
    assert learning_rate(7, 1.0, settings) == pytest.approx(0.8 * 0.01)
    assert learning_rate(500, 1.3, settings) == pytest.approx(0.01)
    rates = [learning_rate(500, i / 100, settings) for i in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[25] == pytest.approx(0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    settings = OptimiserSettings(lr=1.0, warmup_steps=0, decay="wsd", decay_share=0.2, floor=0.0)
    assert learning_rate(0, 0.0, settings) == learning_rate(9, 0.7, settings) == 1.0
    assert learning_rate(9, 0.9, settings) == pytest.approx(0.5)
    assert learning_rate(9, 1.0, settings) == 0.0


def test_the_average_forgets_the_start() -> None:
    assert ema_decay(0, 0.999) == 0.1
    assert ema_decay(10**6, 0.999) == 0.999
