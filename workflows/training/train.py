"""The controller of a run: Ray Train starts the workers, replaces lost ones, and the best weights are registered."""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workflows.config import digest
from workflows.corpus.holds import reading
from workflows.errors import OneFlowError
from workflows.storage import delete, join, open_fs
from workflows.tracking import end_run
from workflows.training.best import read_best
from workflows.training.checkpoint import committed_steps
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials, gather
from workflows.training.progress import read_progress, watched
from workflows.training.ray_worker import clear_failure, read_failure, work_under_ray
from workflows.training.register import Registered, export_and_register
from workflows.training.schedule import progress
from workflows.training.start import Start, check_parent, pinned
from workflows.training.worker import run_root, tracking_uri

PASSED = ("AWS_", "S3_", "FSSPEC_", "HF_", "MLFLOW_", "ONEFLOW_")
"""Prefixes of the driver's variables that workers need to reach storage and tracking."""


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
        OneFlowError: the corpus, storage or cluster is not there, or workers failed more often than allowed.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    begun = time.monotonic()
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
        with reading(materials.manifests), watched(root, say), _run_is_ended(config, key):
            _fit(config, key, root, callbacks)
    trained = time.monotonic()
    registered, run_id = export_and_register(config, materials, key, root)
    if registered:
        say(f"train: {registered.uri} is version {registered.version} of {registered.name}")
    return _report(config, materials, key, root, run_id, registered, (begun, trained, time.monotonic()))


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
        end_run(tracking_uri(config), config.tracking.experiment, key, isinstance(error, KeyboardInterrupt))
        raise


def _fit(config: TrainConfig, key: str, root: str, callbacks: Sequence[Any]) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    from workflows.corpus.cluster import cluster

    with cluster():
        import pyarrow.fs
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from workflows.training.parallel import BACKEND

        settled = _settled(config)
        filesystem, path = open_fs(join(root, "ray"))
        name = secrets.token_hex(4)
        trainer = TorchTrainer(
            work_under_ray,
            train_loop_config={
                "config": settled.model_dump(mode="json"),
                "key": key,
                "environment": passed_environment(),
            },
            torch_config=TorchConfig(backend=BACKEND[settled.compute.device]),
            scaling_config=ScalingConfig(
                num_workers=settled.compute.workers,
                use_gpu=settled.compute.device == "cuda",
                resources_per_worker={"CPU": settled.compute.cpus_per_worker},
            ),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
                failure_config=FailureConfig(max_failures=config.compute.max_failures),
                callbacks=list(callbacks),
            ),
        )
        clear_failure(root)
        try:
            trainer.fit()
        except Exception as error:
            raise _explained(error, root) from error
        finally:
            delete(join(root, "ray"), recursive=True)
        if cause := read_failure(root):
            raise OneFlowError(
                "training", cause, f"mend it and run the command again; {root} keeps its checkpoints"
            )


def _settled(config: TrainConfig) -> TrainConfig:
    """`config` with its device decided for all workers: cuda where the cluster has a GPU for each."""
    import ray

    compute = config.compute
    if compute.device != "auto":
        return config
    device = "cuda" if ray.cluster_resources().get("GPU", 0) >= compute.workers else "cpu"
    return config.model_copy(update={"compute": compute.model_copy(update={"device": device})})


def passed_environment() -> dict[str, str]:
    """What of this process's environment workers need, wherever they run."""
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED)}


def _explained(error: BaseException, root: str) -> OneFlowError:
    """The OneFlowError that a worker raised, or one that tells what it raised."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [_innermost(failure) for failure in failures.values()]
    own = next((cause for cause in causes if isinstance(cause, OneFlowError)), None)
    if own is not None:
        return own
    told = f"{type(causes[0]).__name__}: {' '.join(str(causes[0]).split())[-500:]}"
    mend = f"mend the cause and run the command again: it goes on from the last checkpoint below {root}"
    return OneFlowError("training", told, mend)


def _innermost(error: BaseException) -> BaseException:
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        if isinstance(error, OneFlowError):
            return error
        error = inner
    return error


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
    )
