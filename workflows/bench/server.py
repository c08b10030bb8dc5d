"""`oneflow serve` in a process of its own, as a user starts it, with a Ray of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from workflows.bench.child import ROOT
from workflows.client import Client, ServerError
from workflows.errors import OneFlowError
from workflows.serving.service import free_port

START_S = 300.0
END_S = 90.0


@contextmanager
def server(model: str, options: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """Serves `model` while the context is open; gives the address and the id of the process.

    `options` are those of the command without their dashes: `{"batch": 8}` is `--batch 8`.

    Raises:
        OneFlowError: it did not start; the message has its last words.
    """
    port = free_port()
    given = [w for k, v in {"port": port, **options}.items() for w in (f"--{k}", str(v))]
    with _started(["workflows", "serve", model, *given], port) as (url, pid):
        yield url, pid


@contextmanager
def plain_server(model: str, dtype: str = "float32", device: str = "cpu") -> Iterator[tuple[str, int]]:
    """As `server`, by a plain deployment of Ray Serve."""
    port = free_port()
    with _started(["workflows.bench.plain_serve", model, str(port), dtype, device], port) as (url, pid):
        yield url, pid


@contextmanager
def _started(module: Sequence[str], port: int) -> Iterator[tuple[str, int]]:
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _await(url, process, said)
            yield url, process.pid
        finally:
            _end(process)


def _await(url: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    deadline = time.monotonic() + START_S
    with Client(url, attempts=1, timeout_s=10.0) as client:
        while True:
            try:
                client.health()
                return
            except ServerError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    words = " ".join(said.read().decode(errors="replace").split())[-500:]
                    cause = words or str(error)
                    raise OneFlowError("the server", cause, "see whether Ray starts here") from None
                time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
