import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workflows.stack import process
from workflows.stack.process import Launch, Record, spawn

FAMILY = """
import signal, subprocess, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def marker() -> Iterator[str]:
    name = f"test:{os.getpid()}:{time.time_ns()}"
    yield name
    process.sweep(name, grace_s=0.0)


def family(kind: str, marker: str, directory: Path) -> Record:
    launch = Launch(argv=[sys.executable, "-c", FAMILY, kind], env={})
    record = spawn(launch, marker, "f", directory / "log", directory)
    deadline = time.monotonic() + 300
    while "ready" not in (directory / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return record


def test_stop_ends_grandchildren_in_other_sessions_too(marker: str, tmp_path: Path) -> None:
    record = family("meek", marker, tmp_path)
    assert len(process.members(marker)) == 2
    process.stop(record)
    assert process.members(marker) == []
    assert record.process() is None


def test_what_ignores_the_request_is_ended_by_force(marker: str, tmp_path: Path) -> None:
    record = family("stubborn", marker, tmp_path)
    process.stop(record, grace_s=0.2)
    assert process.members(marker) == []


def test_orphans_of_a_killed_process_are_found(marker: str, tmp_path: Path) -> None:
    record = family("meek", marker, tmp_path)
    os.kill(record.pid, signal.SIGKILL)
    deadline = time.monotonic() + 300
    while record.process() is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert record.process() is None
    assert len(process.members(marker)) == 1
    process.stop(record)
    assert process.members(marker) == []


def test_a_pid_that_another_process_has_now_counts_as_ended(marker: str, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        created = psutil.Process(other.pid).create_time()
        stale = Record(pid=other.pid, create_time=created - 100.0, marker=marker, fingerprint="f")
        assert stale.process() is None
        process.stop(stale)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_environment_and_log(marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNWANTED", "1")
    code = "import os; print(os.environ['GIVEN'], 'UNWANTED' in os.environ, os.getcwd())"
    launch = Launch(argv=[sys.executable, "-c", code], env={"GIVEN": "yes"}, unset=["UNWANTED"])
    record = spawn(launch, marker, "f", tmp_path / "log", tmp_path)
    psutil.wait_procs([p] if (p := record.process()) else [], timeout=300)
    assert process.tail(tmp_path / "log") == f"yes False {tmp_path}"


def test_tail_is_one_line_of_the_last_ones(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n" * 10_000 + "\nfourth\n\nlast\n")
    assert process.tail(tmp_path / "log", 2) == "fourth | last"
    assert process.tail(tmp_path / "none") == ""
