"""Progress of a run and the learning rate at it."""

import math

from workflows.training.config import BudgetSettings, OptimiserSettings


def progress(step: int, elapsed_s: float, budget: BudgetSettings) -> float:
    """Share of the budget that is used, by steps or by minutes, whichever is further; 1 or more ends the run."""
    minutes = elapsed_s / 60 / budget.max_minutes if budget.max_minutes else 0.0
    return max(step / budget.steps, minutes)


def learning_rate(step: int, done: float, settings: OptimiserSettings) -> float:
    """The rate of step `step` (from 0) at progress `done`.

    Linear warm-up times the decay: cosine is peak * (floor + (1 - floor) * (1 + cos(pi * done)) / 2).
    """
    done = min(done, 1.0)
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.decay == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    else:
        left = min(1.0, (1 - done) / settings.decay_share)
    return settings.lr * warm * (settings.floor + (1 - settings.floor) * left)


def ema_decay(step: int, decay: float) -> float:
    """Decay of the average at `step` (from 0): it rises to `decay`, so that the start is forgotten."""
    return min(decay, (1 + step) / (10 + step))
