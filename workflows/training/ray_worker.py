"""What Ray Train runs on each worker, and which failures it is not to repeat.

Ray replaces workers that failed, whatever the reason. An error in the config, the data or the program comes again
every time: it is written to the run's storage and the worker ends, so that the run ends at once.
"""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from workflows.errors import UsageError
from workflows.storage import delete, exists, join, read_json, write_json
from workflows.training.config import TrainConfig
from workflows.training.exporter import Exporter
from workflows.training.loop import Diverged, Hooks, Progress
from workflows.training.progress import POLL_S, write_progress
from workflows.training.worker import run_root, work

FAILURE = "failure.json"
LASTING = (UsageError, Diverged, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""Errors that another attempt cannot mend."""


def work_under_ray(given: dict[str, Any]) -> None:
    """`given` has the config (JSON), the run's key, and variables of the environment for what is not set here."""
    for name, value in given["environment"].items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = TrainConfig.model_validate(given["config"])
    root = run_root(config, given["key"])
    try:
        with Exporter(config, given["key"], _rank()) as exporter:

            def committed(pointer: Mapping[str, Any]) -> None:
                exporter.committed(pointer)
                _report(pointer)

            work(config, Hooks(_Teller(root), committed, exporter.logged), given["key"])
    except LASTING as error:
        write_json(join(root, FAILURE), {"cause": f"{type(error).__name__}: {error}"}, if_absent=True)
        dist.destroy_process_group()
    except Exception:
        # A peer that ended above closed its connections; this worker's error only follows from that.
        if not exists(join(root, FAILURE)):
            raise


def read_failure(root: str) -> str | None:
    """Why the last call ended a run that Ray thinks is done, or None."""
    url = join(root, FAILURE)
    return str(read_json(url)["cause"]) if exists(url) else None


def clear_failure(root: str) -> None:
    """Begin anew: the cause may have been mended."""
    delete(join(root, FAILURE))


class _Teller:
    """Writes progress, not more often than it is read; the last of it always."""

    def __init__(self, root: str) -> None:
        self._root, self._told = root, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told >= POLL_S or progress.done >= 1:
            self._told = now
            write_progress(self._root, progress)


def _rank() -> int:
    import ray.train

    return int(ray.train.get_context().get_world_rank())


def _report(pointer: Mapping[str, Any]) -> None:
    import ray.train

    ray.train.report(dict(pointer))
