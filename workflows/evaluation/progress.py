"""How far an evaluation is, for people: items a second, what is left, what failed."""

from __future__ import annotations

import time
from collections.abc import Callable

from workflows.evaluation.item import Output

EVERY_S = 10.0


class Progress:
    """Counts outputs and says a line every `EVERY_S`, and one at the end."""

    def __init__(self, say: Callable[[str], None] = lambda line: None, every_s: float = EVERY_S) -> None:
        self.total = self.done = self.failed = self.kept = 0
        self._say, self._every = say, every_s
        self._began = self._said = time.monotonic()

    def begin(self, asked: int, kept: int) -> None:
        """So many are asked now; so many were answered before."""
        self.total, self.kept = asked, kept
        self._began = self._said = time.monotonic()
        self._say(f"asking {asked} items" + (f"; {kept} were answered before" if kept else ""))

    def add(self, output: Output) -> None:
        """One more is there."""
        self.done += 1
        self.failed += bool(output.error)
        now = time.monotonic()
        if self.done == self.total or now - self._said >= self._every:
            self._said = now
            self._say(self.line(now - self._began))

    def line(self, seconds: float) -> str:
        """The state after so many seconds."""
        rate = self.done / seconds if seconds > 0 else 0.0
        left = self.total - self.done
        rest = f"{left / rate:.0f} s left" if left and rate else f"{seconds:.0f} s"
        return f"{self.done}/{self.total} items, {rate:.1f} a second, {rest}, {self.failed} failed"
