"""A Ray of this machine, started and stopped by a process that is told to end more than once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

SERVER = """
import signal, threading
from workflows.corpus.cluster import cluster
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
with cluster():
    print("up", flush=True)
    asked.wait()
print("down", flush=True)
"""


def tell(process: subprocess.Popen[str], ended: threading.Event) -> None:
    """SIGTERM, and again every tenth of a second."""
    while not ended.wait(0.1):
        process.send_signal(signal.SIGTERM)


def test_ray_is_stopped_however_often_its_process_is_told_to_end() -> None:
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=Path(__file__).parents[3],
        env=alone,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        processes = psutil.Process(server.pid).children(recursive=True)
        assert len(processes) > 2
        ended = threading.Event()
        told = threading.Thread(target=tell, args=(server, ended))
        told.start()
        assert server.stdout.readline() == "down\n"
        ended.set()
        told.join()
    _, left = psutil.wait_procs(processes, timeout=20)
    assert left == []
