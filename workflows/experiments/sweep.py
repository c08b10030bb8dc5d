"""A sweep on Ray Tune: what is planned and not over yet is trained, then all is told, in MLflow and on a page.

Tune decides what runs when and what is stopped. What a trial is and how far it came stands in the trial's own storage,
so a sweep needs nothing of Tune's to be started again.
"""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from workflows.errors import OneFlowError
from workflows.experiments.config import ExperimentConfig
from workflows.experiments.report import SweepReport, compose, page
from workflows.experiments.trials import Trial, key_of_sweep, plan
from workflows.revision import git_commit
from workflows.storage import delete, join, open_fs, put_atomic
from workflows.tracking import COMMIT, RunSpec, Tracker, end_run, flat_params, run_status
from workflows.training.config import TrainConfig
from workflows.training.fitting import passed_environment
from workflows.training.train import run as train
from workflows.training.worker import tracking_uri

Say = Callable[[str], None]
FLUSH_S = 60.0
RESERVED_BYTES = 1 << 20
ENVIRONMENT = {
    # Relative paths of a config mean what they mean to the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # What Tune and MLflow would print is told by the sweep itself, and Tune's own files do not stay.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def run(config: ExperimentConfig, *, say: Say | None = None) -> SweepReport:
    """Run the trials that are not over, each as `oneflow train` would, and report on all.

    A sweep that was killed goes on when it is started again: trials that ended or were stopped are left as they are,
    those that were running go on from their checkpoints. A trial that fails does not end the sweep.

    Raises:
        UsageError: a key or value that no training takes; nothing was started.
        OneFlowError: the corpus, storage or cluster is not there, or no trial at all came to an end.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    trials = plan(config)
    key = key_of_sweep(config, trials)
    first = trials[0].config
    root = join(first.checkpoint.url, "sweeps", key)
    waiting = [trial for trial in trials if trial.state == "open"]
    say(f"sweep: {config.name} {key}, {len(trials)} trials, {len(waiting)} of them to run, {root}")
    failures: dict[int, str] = {}
    with _parent(config, first, key) as tracker:
        run_id = tracker.run_id() if tracker else None
        for trial in trials:
            if trial.state == "finished":
                _deliver(_under(trial, run_id).config, trial.run_key, say)
        if waiting:
            failures = _tune(config, [_under(trial, run_id) for trial in waiting], root, say)
        report = compose(config, trials, key, run_id, join(root, "report.html"), failures)
        html = page(config, report)
        put_atomic(report.page, html.encode())
        if tracker:
            _tell(tracker, report, html)
    if report.best is None:
        told = "; ".join(sorted(set(failures.values()))) or "none has a held-out loss yet"
        raise OneFlowError(
            f"sweep {config.name}", f"no trial came to an end: {told}", "mend it and run it again"
        )
    return report


@contextmanager
def _parent(config: ExperimentConfig, first: TrainConfig, key: str) -> Iterator[Tracker | None]:
    """The sweep's own run in MLflow, ended as the context is left."""
    uri = tracking_uri(first)
    if not uri:
        yield None
        return
    params = flat_params(config.model_dump(mode="json"))
    tags = {COMMIT: git_commit(), "oneflow.kind": "sweep"}
    tracker = Tracker(uri, RunSpec(first.tracking.experiment, config.name, key, params, tags))
    try:
        yield tracker
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", FLUSH_S)
        raise
    tracker.close("FINISHED", FLUSH_S)


def _under(trial: Trial, run_id: str | None) -> Trial:
    """`trial` nested under the sweep's run."""
    from dataclasses import replace

    tracking = trial.config.tracking.model_copy(update={"parent_run": run_id})
    return replace(trial, config=trial.config.model_copy(update={"tracking": tracking}))


def _tune(config: ExperimentConfig, trials: Sequence[Trial], root: str, say: Say) -> dict[int, str]:
    """Train `trials`; returns why those failed that did, by number."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from workflows.corpus.cluster import cluster

    with cluster():
        import pyarrow.fs
        from ray import tune

        from workflows.experiments.tune_trial import Marks, early_stopping, train_trial

        filesystem, path = open_fs(join(root, "tune"))
        given = {trial.number: (trial.config.model_dump(mode="json"), config.terms) for trial in trials}
        logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
        marks = Marks(trials, say, config.early is not None)
        # The workers of the training take the CPUs; what starts and awaits them takes none, so that nothing can lock
        # up. Tune wants something reserved.
        trainable = tune.with_resources(
            tune.with_parameters(train_trial, given=given, environment=passed_environment()),
            {"memory": RESERVED_BYTES},
        )
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(sorted(given))},
            tune_config=tune.TuneConfig(
                metric="score",
                mode=config.mode,
                max_concurrent_trials=config.concurrent,
                scheduler=early_stopping(config.early, trials[0].config.budget.steps),
            ),
            run_config=tune.RunConfig(
                name=secrets.token_hex(4),
                storage_path=path,
                storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
                callbacks=[marks],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            _end_runs([trial for trial in trials if trial.number not in marks.failures])
            delete(join(root, "tune"), recursive=True)
    return marks.failures


def _deliver(config: TrainConfig, key: str, say: Say) -> None:
    """What tracking lacks of a trial that came to its end as its sweep was killed: the same training delivers it."""
    uri = tracking_uri(config)
    if uri and run_status(uri, config.tracking.experiment, key) not in (None, "FINISHED"):
        train(config, say=say)


def _end_runs(trials: Sequence[Trial]) -> None:
    """No run of a trial that was stopped or interrupted goes on saying that it is running."""
    for trial in trials:
        if trial.state != "finished" and trial.progress:
            settings = trial.config.tracking
            told = "the sweep ended before it"
            end_run(tracking_uri(trial.config), settings.experiment, trial.run_key, "KILLED", told)


def _tell(tracker: Tracker, report: SweepReport, html: str) -> None:
    """The sweep's figures and its page in MLflow."""
    tracker.json("sweep.json", report.to_json())
    tracker.text("report.html", html)
    over = sum(row.state != "open" for row in report.rows)
    values: Mapping[str, Any] = {"sweep/trials": len(report.rows), "sweep/over": over}
    best = {"sweep/best": report.best.score} if report.best and report.best.score is not None else {}
    tracker.metrics({**values, **best}, over)
    if report.best:
        tracker.tags({"oneflow.best_trial": report.best.run_id or report.best.run_key})
