"""The controller of a run: Ray Train starts the workers, replaces lost ones, and the best weights are registered."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from signal import Signals
from typing import Any

from workflows.config import digest
from workflows.corpus.holds import reading
from workflows.errors import OneFlowError
from workflows.leases import EXPIRY_S, claim, held
from workflows.storage import join, read_json
from workflows.tracking import ATTEMPT, end_run, run_status
from workflows.training.attempts import FILE as ATTEMPTS
from workflows.training.attempts import WORLD_SIZE, read_attempts
from workflows.training.best import read_best
from workflows.training.checkpoint import committed_steps
from workflows.training.commit import Commit, commit_name
from workflows.training.config import TrainConfig
from workflows.training.fitting import fit
from workflows.training.goodput import read
from workflows.training.materials import Materials, gather
from workflows.training.progress import read_progress, watched
from workflows.training.register import Registered, export_and_register
from workflows.training.schedule import progress
from workflows.training.start import Start, check_parent, pinned
from workflows.training.stopping import Stopped
from workflows.training.worker import open_tracker, run_root, tracking_uri

LEASE = "train"
PATIENCE_S = EXPIRY_S + 10
"""How long a driver waits for another: longer than the lease of one that died elsewhere lasts."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `run` did."""

    run_key: str
    run_id: str | None
    experiment: str
    root: str
    step: int
    elapsed_s: float
    """Seconds of training, of all attempts."""
    metrics: Mapping[str, float]
    best_step: int
    best_loss: float | None
    corpus_version: str
    config_digest: str
    model: Registered | None
    seconds: Mapping[str, float]
    """Seconds of this call: train, register."""
    attempts: int = 0
    """Times that workers were started and came as far as training."""
    goodput: Mapping[str, float] = field(default_factory=dict)
    """Share of the run's wall time in steps that counted, and the seconds of each part."""


def run(
    config: TrainConfig,
    *,
    resume: str | None = None,
    say: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> TrainReport:
    """Train, on the cluster of RAY_ADDRESS or a local one, export the best weights and register them.

    A run with the same key (config and corpus) is continued from its newest checkpoint. `resume` names an MLflow
    run that is continued instead, whatever has changed in the config. `say` gets progress lines. `callbacks` are
    Ray Train's, and are told of every checkpoint.

    Raises:
        OneFlowError: the corpus, storage or cluster is not there, workers failed more often than allowed, or another
            process trains this run.
        Stopped: SIGTERM or SIGINT came; what was trained is kept.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    begun, started = time.monotonic(), time.time()
    materials = gather(config)
    config = pinned(config, materials.start)
    key = key_of_run(config, resume, materials.start) if resume else materials.run_key
    root = run_root(config, key)
    say(f"train: run {key}, corpus {materials.corpus_version}, {config.compute.workers} workers, {root}")
    if ended(config, root):
        say(
            f"train: the run has ended at step {(read_progress(root) or {})['step']}; nothing is left to train"
        )
    else:
        with (
            _driving(root, say),
            reading(materials.manifests),
            watched(root, say),
            _run_is_ended(config, key),
        ):
            _train(config, key, root, started, say, callbacks)
    trained = time.monotonic()
    _deliver(config, materials, key, root)
    registered, run_id = _registered(config, materials, key, root)
    if registered:
        say(f"train: {registered.uri} is version {registered.version} of {registered.name}")
    return _report(config, materials, key, root, run_id, registered, (begun, trained, time.monotonic()))


@contextmanager
def _driving(root: str, say: Callable[[str], None]) -> Iterator[None]:
    """The lease of the one process that drives a run; waits for one that died on another machine to expire."""
    if (other := held(root, LEASE)) is not None:
        say(
            f"train: the run is driven by {other.told()}; waiting for at most {PATIENCE_S:.0f} s whether it lives"
        )
    with claim(root, LEASE, "the run is being trained", wait_s=PATIENCE_S):
        yield


def key_of_run(config: TrainConfig, run_id: str, start: Start | None = None) -> str:
    """The key of an MLflow run; OneFlowError when it is none of ours, or began with other weights than `start`."""
    from mlflow.exceptions import MlflowException

    from workflows.tracking import RUN_KEY, client_of

    try:
        tags = client_of(tracking_uri(config) or "").get_run(run_id).data.tags
    except MlflowException as error:
        raise OneFlowError(f"run {run_id}", str(error), "see the runs in MLflow") from error
    if RUN_KEY not in tags:
        raise OneFlowError(f"run {run_id}", f"it has no tag {RUN_KEY}", "name a run of oneflow train")
    check_parent(start, tags)
    return str(tags[RUN_KEY])


def ended(config: TrainConfig, root: str) -> bool:
    """Whether the run at `root` has used up the budget of `config` and committed its last step."""
    last = read_progress(root)
    if last is None or progress(last["step"], last["elapsed_s"], config.budget) < 1:
        return False
    return last["step"] in committed_steps(root) and read_best(root) is not None


@contextmanager
def _run_is_ended(config: TrainConfig, key: str) -> Iterator[None]:
    """Where training fails for good, the MLflow run does not go on saying that it is running."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit | Stopped) else "FAILED"
        end_run(tracking_uri(config), config.tracking.experiment, key, status, str(error))
        raise


def _train(
    config: TrainConfig,
    key: str,
    root: str,
    begun: float,
    say: Callable[[str], None],
    callbacks: Sequence[Any],
) -> None:
    """Train to the end; Stopped when a signal came before it."""
    number = fit(config, key, root, begun, say, callbacks)
    if number is not None and not ended(config, root):
        step = max(committed_steps(root), default=0)
        mend = "run the same command again: it goes on from there"
        raise Stopped(f"run {key}", f"stopped by {Signals(number).name}; step {step} is kept", mend, number)


def _deliver(config: TrainConfig, materials: Materials, key: str, root: str) -> None:
    """What tracking did not take before the workers ended, as it was away, out of the last checkpoint."""
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(config)
    try:
        if not uri or run_status(uri, config.tracking.experiment, key) == "FINISHED":
            return
    except (MlflowException, OSError) as error:
        raise _untracked(config, root, error) from None
    tracker = open_tracker(config, materials, key)
    if tracker:
        attempts = read_attempts(root)
        tracker.tags(
            {ATTEMPT: str(len(attempts)), WORLD_SIZE: str(attempts[-1]["world_size"])} if attempts else {}
        )
        tracker.json(ATTEMPTS, attempts)
        tracker.resend(_last_state(root).get("unsent_metrics", []))
        tracker.close("FINISHED", config.tracking.patience_s)


def _last_state(root: str) -> Mapping[str, Any]:
    """What the newest checkpoint holds beside tensors."""
    url = join(root, "commits", commit_name(max(committed_steps(root))))
    return Commit.from_json(read_json(url)).state


def _registered(
    config: TrainConfig, materials: Materials, key: str, root: str
) -> tuple[Registered | None, str | None]:
    from mlflow.exceptions import MlflowException

    try:
        return export_and_register(config, materials, key, root)
    except MlflowException as error:
        raise _untracked(config, root, error) from error


def _untracked(config: TrainConfig, root: str, error: Exception) -> OneFlowError:
    told = " ".join(str(error).split())[:300]
    mend = f"start it, then run the same command again to register: training is done and kept in {root}"
    return OneFlowError(f"MLflow at {tracking_uri(config)}", told, mend)


def _report(
    config: TrainConfig,
    materials: Materials,
    key: str,
    root: str,
    run_id: str | None,
    registered: Registered | None,
    times: tuple[float, float, float],
) -> TrainReport:
    last, best = read_progress(root) or {}, read_best(root)
    goodput = read(last.get("goodput"))
    begun, trained, ended = times
    return TrainReport(
        run_key=key,
        run_id=run_id,
        experiment=config.tracking.experiment,
        root=root,
        step=int(last.get("step", 0)),
        elapsed_s=float(last.get("elapsed_s", 0.0)),
        metrics=last.get("metrics", {}),
        best_step=best.step if best else 0,
        best_loss=best.loss if best else None,
        corpus_version=materials.corpus_version,
        config_digest=digest(config),
        model=registered,
        seconds={"train": trained - begun, "register": ended - trained},
        attempts=len(read_attempts(root)),
        goodput={n.removeprefix("goodput/"): v for n, v in goodput.metrics().items()} if goodput else {},
    )
