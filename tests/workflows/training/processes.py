"""Real processes of one group for a test: started at once, joined, their failures shown."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PRELOADED = [
    "workflows.training.worker", "torch._dynamo", "tokenizers", "xxhash", "jsonschema", "mlflow",
    "hypothesis", "pytest", "tests.workflows.training.corpus",
]  # fmt: skip
"""Modules that training, and the tests of it, import sooner or later: more than half of a short run's time."""


def forking() -> ForkServerContext:
    """Where processes are forked from a server that imported all this once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(function: Callable[..., None], rank: int, world: int, port: int, log: Path, given: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with log.open("w", buffering=1) as stream:
        sys.stdout = sys.stderr = stream
        try:
            function(*given)
        except BaseException:
            traceback.print_exc(file=stream)
            raise


def together(function: Callable[..., None], world: int, directory: Path, *given: Any) -> None:
    """Run `function(*given)` in `world` processes, whose environment is that of torchrun; all must end well."""
    context = forking()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [directory / f"rank-{rank}.log" for rank in range(world)]
    ranks = [
        context.Process(target=_run, args=(function, rank, world, port, logs[rank], given))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(500)
        process.kill()
    said = "\n".join(log.read_text() for log in logs if log.exists())
    assert [process.exitcode for process in ranks] == [0] * world, said
