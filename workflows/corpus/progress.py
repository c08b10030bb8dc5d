"""Progress of long work, told on stderr in lines that suit a terminal and a log alike."""

import sys
import time

EVERY_S = 5.0


class Progress:
    """Counts of one stage against what is to be done; a line at the start, every so many seconds, and at the end."""

    def __init__(self, stage: str, total: int, unit: str, every: float = EVERY_S) -> None:
        self._every = every
        self._stage, self._total, self._unit = stage, total, unit
        self._done, self._refused, self._begin = 0, 0, time.monotonic()
        self._told = self._begin
        self._say(f"{total:,} {unit} to do")

    def add(self, count: int, refused: int = 0) -> None:
        """`count` more are done, and `refused` more of the total will never be."""
        self._done += count
        self._refused += refused
        now = time.monotonic()
        if now - self._told >= self._every:
            self._told = now
            self._say(f"{self._done:,} of {self._total:,} {self._counts()}, {self._left()} left")

    def finish(self, note: str = "") -> None:
        """All is done; `note` ends the line."""
        seconds = time.monotonic() - self._begin
        told = f"{self._done:,} {self._counts()} in {seconds:.1f} s"
        self._say(f"{told}; {note}" if note else told)

    def _counts(self) -> str:
        refused = f", {self._refused:,} refused" if self._refused else ""
        rate = self._rate()
        return (
            f"{self._unit}{refused}, {rate:,.0f}/s" if rate >= 10 else f"{self._unit}{refused}, {rate:.2g}/s"
        )

    def _left(self) -> str:
        """How long what is left takes at the rate so far."""
        done = self._done + self._refused
        if not done:
            return "unknown"
        seconds = round((self._total - done) * (time.monotonic() - self._begin) / done)
        hours, rest = divmod(max(0, seconds), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._begin, 1e-9)

    def _say(self, text: str) -> None:
        print(f"{self._stage}: {text}", file=sys.stderr, flush=True)
