"""Ray Train at work on a run: workers are started, lost ones replaced, and signals passed on.

`compute.max_failures` bounds failures without progress: Ray counts those of one `fit`, and a fit that failed after it
committed a step is followed by another one. So a run of months outlives any number of lost nodes, and one that
cannot get anywhere ends soon.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workflows.errors import OneFlowError
from workflows.storage import delete, join, open_fs
from workflows.training.checkpoint import committed_steps
from workflows.training.config import TrainConfig
from workflows.training.failures import clear_failure, explained, read_failure
from workflows.training.ray_worker import work_under_ray
from workflows.training.stopping import ask_workers, forget, signals

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

PASSED = ("AWS_", "S3_", "FSSPEC_", "HF_", "MLFLOW_", "ONEFLOW_")
"""Prefixes of the driver's variables that workers need to reach storage and tracking."""
WAIT_S = 0.2
SHORT_S = 60.0
"""Seconds between lines that say that the cluster is too small."""


def fit(
    config: TrainConfig,
    key: str,
    root: str,
    begun: float,
    say: Callable[[str], None],
    callbacks: Sequence[Any] = (),
) -> int | None:
    """Train under Ray until the budget is used up; the number of the signal that stopped it before, or None.

    `callbacks` are Ray Train's.

    Raises:
        OneFlowError: workers failed more often than allowed without a step that was committed, or for good.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    from workflows.corpus.cluster import cluster

    with cluster():
        fitting = _Fitting(_settled(config), key, root, begun, say, callbacks)
        clear_failure(root)
        try:
            return fitting.run()
        finally:
            fitting.tidy()


class _Fitting:
    def __init__(
        self,
        config: TrainConfig,
        key: str,
        root: str,
        begun: float,
        say: Callable[[str], None],
        callbacks: Sequence[Any],
    ) -> None:
        self._callbacks = callbacks
        self._config, self._key, self._root, self._begun, self._say = config, key, root, begun, say
        self._name = secrets.token_hex(4)
        self._signal: int | None = None
        self._error: BaseException | None = None

    def run(self) -> int | None:
        with signals(self._ask):
            while True:
                before = self._newest()
                self._fit()
                if cause := read_failure(self._root):
                    raise cause
                if self._error is None:
                    return self._signal
                if self._signal is not None or self._newest() <= before:
                    raise explained(self._error, self._root) from self._error
                self._say(f"train: {explained(self._error, self._root)}")
                self._say(f"train: step {self._newest()} was committed since, so the workers start again")

    def tidy(self) -> None:
        """Leave nothing of Ray Train's own."""
        forget(self._name)
        try:
            delete(join(self._root, "ray"), recursive=True)
        except OneFlowError as error:
            self._say(f"train: {error}")

    def _fit(self) -> None:
        """One fit, in a thread, as signals come to this one; `_error` is what it raised."""
        self._error = None
        thread = threading.Thread(target=self._attempt, name="fit", daemon=True)
        thread.start()
        told = time.monotonic()
        while thread.is_alive():
            thread.join(WAIT_S)
            if time.monotonic() - told > SHORT_S:
                told = time.monotonic()
                self._tell_shortage()

    def _attempt(self) -> None:
        try:
            _trainer(self._config, self._key, self._root, self._begun, self._name, self._callbacks).fit()
        except BaseException as error:
            self._error = error

    def _newest(self) -> int:
        return max(committed_steps(self._root), default=0)

    def _ask(self, number: int) -> None:
        self._signal = number
        self._say("train: ending after this step, with a checkpoint; the signal again ends it at once")
        ask_workers(self._name)

    def _tell_shortage(self) -> None:
        import ray

        compute = self._config.compute
        kind = "GPU" if compute.device == "cuda" else "CPU"
        each = 1.0 if kind == "GPU" else compute.cpus_per_worker
        least = (compute.min_workers or compute.workers) * each
        there = ray.cluster_resources().get(kind, 0.0)
        if there < least:
            self._say(
                f"train: the cluster has {there:g} {kind}, {least:g} are needed; waiting for nodes "
                "(compute.min_workers lets it go on with fewer)"
            )


def _trainer(
    config: TrainConfig, key: str, root: str, begun: float, name: str, callbacks: Sequence[Any]
) -> "TorchTrainer":
    import pyarrow.fs
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from workflows.training.elastic import DivisorTrainer
    from workflows.training.parallel import BACKEND, group_timeout_s

    compute = config.compute
    filesystem, path = open_fs(join(root, "ray"))
    return DivisorTrainer(
        work_under_ray,
        lanes=config.data.lanes,
        tensor=compute.tensor_parallel,
        key=key,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "key": key,
            "begun": begun,
            "stop": name,
            "environment": passed_environment(),
        },
        torch_config=TorchConfig(backend=BACKEND[compute.device], timeout_s=round(group_timeout_s(compute))),
        scaling_config=ScalingConfig(
            num_workers=(compute.min_workers, compute.workers) if compute.min_workers else compute.workers,
            use_gpu=compute.device == "cuda",
            resources_per_worker={"CPU": compute.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=secrets.token_hex(4),
            storage_path=path,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
            failure_config=FailureConfig(max_failures=compute.max_failures),
            callbacks=list(callbacks),
        ),
    )


def _settled(config: TrainConfig) -> TrainConfig:
    """`config` with its device decided for all workers: cuda where the cluster has a GPU for each."""
    import ray

    compute = config.compute
    if compute.device != "auto":
        return config
    needed = compute.min_workers or compute.workers
    device = "cuda" if ray.cluster_resources().get("GPU", 0) >= needed else "cpu"
    return config.model_copy(update={"compute": compute.model_copy(update={"device": device})})


def passed_environment() -> dict[str, str]:
    """What of this process's environment workers need, wherever they run."""
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
