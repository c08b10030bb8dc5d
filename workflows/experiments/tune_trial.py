"""What Ray Tune runs for a trial, and what it is told: the same training that `oneflow train` runs."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from workflows.experiments.config import EarlySettings
from workflows.experiments.trials import Trial, score
from workflows.training.config import TrainConfig


class Scores(TuneReportCallback):
    """Tells Tune the score at every checkpoint that has one."""

    def __init__(self, terms: Mapping[str, float]) -> None:
        super().__init__()
        self._terms = dict(terms)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """`metrics` are each worker's pointer to the checkpoint; rank 0's has the held-out loss."""
        value = score(metrics[0], self._terms)
        if value is not None:
            super().after_report(run_context, [{"score": value, "step": metrics[0]["step"]}], None)


class Marks(tune.Callback):
    """Notes in a trial's storage, as soon as Tune has done with it, that it was stopped; keeps why trials failed."""

    def __init__(self, trials: Sequence[Trial], say: Callable[[str], None], stops: bool) -> None:
        """`stops`: a scheduler stops trials; without one, what ends too soon was interrupted and may go on."""
        self._trials, self._say, self._stops = {trial.number: trial for trial in trials}, say, stops
        self.failures: dict[int, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It begins, or begins anew."""
        self._tell(trial, "begins")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It came to its end, or was stopped."""
        ours = self._trials[trial.config["trial"]]
        if ours.state == "finished":
            self._tell(trial, "has finished")
        elif self._stops:
            ours.stop(int((trial.last_result or {}).get("step", 0)))
            self._tell(trial, "is stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed for good."""
        told = _last_line(trial.error_file)
        self.failures[trial.config["trial"]] = told
        self._tell(trial, f"failed: {told}")

    def _tell(self, trial: Any, what: str) -> None:
        ours = self._trials[trial.config["trial"]]
        values = " ".join(f"{key}={value}" for key, value in ours.values.items())
        result = (trial.last_result or {}).get("score")
        self._say(
            f"sweep: trial {ours.number} {what}: {values}" + (f", score {result:.4f}" if result else "")
        )


def _last_line(error_file: str | None) -> str:
    """What Tune wrote of an exception, without the trace and the path of its class."""
    lines = Path(error_file).read_text().strip().splitlines() if error_file else []
    return re.sub(r"^[\w.]*\.(?=\w+: )", "", lines[-1]) if lines else "it failed, Tune does not say why"


def train_trial(
    param: dict[str, Any],
    given: Mapping[int, tuple[dict[str, Any], dict[str, float]]],
    environment: Mapping[str, str],
) -> None:
    """Train the trial `param["trial"]`; `given` has configs and metrics by number, `environment` what nodes lack."""
    for name, held in environment.items():
        os.environ.setdefault(name, held)
    from workflows.training.train import run

    tree, terms = given[param["trial"]]
    report = run(TrainConfig.model_validate(tree), callbacks=[Scores(terms)])
    value = score(report.metrics, terms)
    if value is not None:
        tune.report({"score": value, "step": report.step})


def early_stopping(early: EarlySettings | None, steps: int) -> TrialScheduler:
    """ASHA over the steps of the trainings; without settings every trial runs to its end."""
    if early is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        max_t=max(steps + 1, early.grace_steps),
        grace_period=early.grace_steps,
        reduction_factor=early.reduction,
    )
