"""The Ray cluster that the stages run on: the one that RAY_ADDRESS names, or one of this machine alone."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from workflows.corpus.worker_retries import gather, tell_driver
from workflows.errors import OneFlowError
from workflows.store_retries import PATIENCE

START_ATTEMPTS = 3
HANDLED_S = 0.005
"""For so long at most SIGTERM is not ours while Ray is being stopped."""
_PASSED = ("AWS_", "S3_", "FSSPEC_", "HF_", "MLFLOW_", PATIENCE)


@dataclass(frozen=True, slots=True)
class Environment:
    """The driver's variables that say how to reach storage, for tasks on nodes that may lack them.

    They travel with a task's arguments, not in a runtime environment: Ray logs those. `repr` shows none of them.
    """

    variables: dict[str, str] = field(repr=False)

    @classmethod
    def of_driver(cls) -> "Environment":
        """What this process has."""
        return cls({key: value for key, value in os.environ.items() if key.startswith(_PASSED)})

    def apply(self) -> None:
        """Set, in the process of a task, what is not set there; its retries are told to the driver from now on."""
        for key, value in self.variables.items():
            os.environ.setdefault(key, value)
        tell_driver()


@contextmanager
def cluster(variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ray is up within; a local one that this call started is stopped at the end, any other left alone.

    `variables` become the environment of what this call runs on a cluster that RAY_ADDRESS names; nothing secret, as
    Ray logs them. A Ray of this machine has the environment of this process anyway.

    Raises:
        OneFlowError: RAY_ADDRESS names a cluster that does not answer.
    """
    # Read by Ray when it is imported: without it a local Ray listens on the outside interface.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        with _handler_kept():
            _init(os.environ.get("RAY_ADDRESS"), variables)
    quiet()
    try:
        yield
    except ray.exceptions.RayError as error:
        own = _own(error)
        if own is None:
            raise
        raise own from error
    finally:
        gather()
        if started:
            _shut_down()


@contextmanager
def _handler_kept() -> Iterator[None]:
    """What this process does at SIGTERM: Ray would have it exit at every one, even in the midst of stopping Ray."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        _handle(before)


def _shut_down() -> None:
    """Stops Ray, which goes back to the system's way with SIGTERM before its processes are gone: a second signal would
    leave them running."""
    import ray

    handler, stopping = signal.getsignal(signal.SIGTERM), threading.Thread(target=ray.shutdown)
    stopping.start()
    while stopping.is_alive():
        stopping.join(HANDLED_S)
        _handle(handler)


def _handle(handler: Any) -> None:
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def cpus() -> int:
    """CPUs of the cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def quiet() -> None:
    """Ray Data tells its progress in bars that fill logs, the stages tell their own; errors come as raised."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _own(error: BaseException) -> OneFlowError | None:
    """The OneFlowError that a task raised, out of Ray's wrappers (some of which take its class on)."""
    import ray

    inner: BaseException | None = error
    while isinstance(inner, ray.exceptions.RayError):
        inner = getattr(inner, "cause", None) or inner.__cause__
    return inner if isinstance(inner, OneFlowError) else None


def start_local(**options: Any) -> None:
    """A Ray of this machine alone, on loopback. `options` go to `ray.init`.

    Ray gives its own processes 30 s to start, which is little where other jobs hold the cores: hence the attempts.
    """
    import ray

    for attempt in range(START_ATTEMPTS):
        try:
            # Without an address Ray joins whatever somebody's "ray start" left a note of in /tmp.
            ray.init(
                "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                **options,
            )
            return
        except Exception as error:
            # Ray raises bare Exception where one of its processes does not start in time.
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS or "timed out during startup" not in str(error):
                raise


def _init(address: str | None, variables: Mapping[str, str] | None) -> None:
    import ray

    try:
        if address:
            with_env = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **with_env)
        else:
            start_local()
    except Exception as error:
        mend = "start it (oneflow stack up), or unset RAY_ADDRESS to run on this machine alone"
        raise OneFlowError(
            f"Ray at {address or 'this machine'}", f"{type(error).__name__}: {error}", mend
        ) from error
