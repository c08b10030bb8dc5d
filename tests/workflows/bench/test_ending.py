"""A benchmark that is told to end again and again stops what it started all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from workflows.bench.child import ROOT

BENCH = """
from workflows.bench import commands
commands.BENCHMARKS["ending"] = "tests.workflows.bench.ending:run"
commands.bench("ending")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_it_started_is_stopped_however_often_it_is_told(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BENCH], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stdout is not None
        pids = [int(word) for word in bench.stdout.readline().split()]
        assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
        for _ in range(5):
            bench.send_signal(number)
            time.sleep(0.1)
    assert bench.returncode == 128 + number
    assert not any(psutil.pid_exists(pid) for pid in pids)
