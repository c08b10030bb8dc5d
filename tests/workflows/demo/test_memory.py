"""Memory is that of real processes: a child that holds a known amount is seen, and what is gone is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from workflows.demo.memory import MemoryWatch, family, held_bytes

MIB = 1 << 20
HOLD = "import sys; held = b'x' * int(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"


@contextmanager
def holder(size: int) -> Iterator[int]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(size)], text=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == "ready\n"
        yield child.pid
        child.stdin.close()


def test_a_descendant_is_counted_once() -> None:
    with holder(100 * MIB) as pid:
        assert pid in family([os.getpid()])
        alone = held_bytes([pid])
        assert 100 * MIB < alone < 160 * MIB
        assert held_bytes([pid, pid]) < alone * 1.1
    assert held_bytes([pid]) == 0


def test_the_watch_keeps_the_peak() -> None:
    watch = MemoryWatch(lambda: [os.getpid()], every_s=0.02)
    with watch.running():
        before = held_bytes([os.getpid()])
        with holder(100 * MIB):
            deadline = time.monotonic() + 60
            while watch.peak_bytes <= before + 90 * MIB and time.monotonic() < deadline:
                time.sleep(0.02)
    assert watch.peak_bytes > before + 90 * MIB
    assert held_bytes([os.getpid()]) < watch.peak_bytes - 50 * MIB
