"""What Ray Train runs on each worker, and which failures it is not to repeat.

Ray replaces workers that failed, whatever the reason. An error in the config, the data or the program comes again
every time: it is written to the run's storage and the worker ends, so that the run ends at once.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from workflows.errors import UsageError
from workflows.store_retries import RETRIES
from workflows.training.config import TrainConfig
from workflows.training.exporter import Exporter
from workflows.training.failures import has_failed, write_failure
from workflows.training.guard import Diverged
from workflows.training.loop import Hooks
from workflows.training.stopping import asked
from workflows.training.worker import run_root, work

LASTING = (
    UsageError,
    Diverged,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    FileNotFoundError,
)
"""Errors that another attempt cannot mend."""


def work_under_ray(given: dict[str, Any]) -> None:
    """`given` has the config (JSON), the run's key, when it was begun, the name by which the driver asks to stop, and
    variables of the environment for what is not set here."""
    for name, value in given["environment"].items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = TrainConfig.model_validate(given["config"])
    root = run_root(config, given["key"])
    # The driver reached the store, so one that does not answer now is only away.
    RETRIES.expect_store()
    try:
        with Exporter(config, given["key"], _rank()) as exporter:

            def committed(pointer: Mapping[str, Any]) -> None:
                exporter.committed(pointer)
                _report(pointer)

            hooks = Hooks(
                committed=committed, stopping=asked(given["stop"]), leaving=_leaving, logged=exporter.logged
            )
            work(config, hooks, given["key"], begun=given["begun"], last=False)
    except LASTING as error:
        write_failure(root, dist.get_rank(), error)
        dist.destroy_process_group()
    except Exception:
        # A peer that ended above closed its connections; this worker's error only follows from that.
        if not has_failed(root):
            raise


def _rank() -> int:
    import ray.train

    return int(ray.train.get_context().get_world_rank())


def _report(pointer: Mapping[str, Any]) -> None:
    import ray.train

    ray.train.report(dict(pointer))


def _leaving() -> bool:
    """Whether Ray says that a node of this run is being drained."""
    import ray.train

    return ray.train.get_preemption_info() is not None
