"""A benchmark for `test_ending`: starts a process that takes its time to be stopped, and a child."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from workflows.bench.child import Child


@contextmanager
def started() -> Iterator[int]:
    """The id of a process that is stopped at the end, as slowly as a server."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield process.pid
    finally:
        time.sleep(1)
        process.terminate()
        process.wait()


def run(runs: int) -> None:
    """Never ends by itself."""
    with started() as pid, Child("tests.workflows.bench.ending:busy", {}) as child:
        print(pid, child.ask()["pid"], flush=True)
        child.ask()


def busy() -> object:
    """Tells its process, then computes for long."""
    import os

    told = iter([{"pid": os.getpid()}])

    def answer() -> dict[str, int]:
        found = next(told, None)
        if found is None:
            time.sleep(600)
            raise AssertionError("nobody ended it")
        return found

    return answer
