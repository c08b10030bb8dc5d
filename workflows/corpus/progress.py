"""Progress of long work, told on stderr in lines that suit a terminal and a log alike."""

import sys
import time

EVERY_S = 5.0


class Progress:
    """Counts of one stage against what is to be done; a line at the start, every few seconds, and at the end."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._done, self._begin = 0, time.monotonic()
        self._told = self._begin
        self._say(f"{total:,} {unit} to do")

    def add(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told >= EVERY_S:
            self._told = now
            self._say(f"{self._done:,} of {self._total:,} {self._unit}, {self._rate():,.0f}/s")

    def finish(self, note: str = "") -> None:
        """All is done; `note` ends the line."""
        seconds = time.monotonic() - self._begin
        told = f"{self._done:,} {self._unit} in {seconds:.1f} s, {self._rate():,.0f}/s"
        self._say(f"{told}; {note}" if note else told)

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._begin, 1e-9)

    def _say(self, text: str) -> None:
        print(f"{self._stage}: {text}", file=sys.stderr, flush=True)
