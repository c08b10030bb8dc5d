"""Stages as they pass: announced, timed, and summed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from workflows.demo.page import duration
from workflows.demo.report import Stage
from workflows.errors import OneFlowError


@dataclass(slots=True)
class Note:
    """What came of a stage, set before it ends: a few words, and its seconds where they are not all of the time."""

    result: str = ""
    seconds: float | None = None


@dataclass(slots=True)
class Ledger:
    """The stages that are done, in order. `say` shows a line to the user; `total` is only for "3/9"."""

    say: Callable[[str], None]
    total: int
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, words: str) -> Iterator[Note]:
        """Announces `name`, times what runs inside, and tells what came of it.

        Raises:
            OneFlowError: whatever failed inside, with the stage's name before it and its own exit code.
        """
        note, started = Note(), time.perf_counter()
        self.say(f"[{len(self.stages) + 1}/{self.total}] {name}: {words}")
        try:
            yield note
        except OneFlowError as error:
            error.what = f"stage {name}: {error.what}"
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise OneFlowError(f"stage {name}", cause, "see it whole with --debug") from error
        passed = time.perf_counter() - started
        self.record(name, passed if note.seconds is None else note.seconds, note.result)

    def record(self, name: str, seconds: float, result: str) -> None:
        """Puts down a stage that is over."""
        self.stages.append(Stage(name, seconds, result))
        self.say(f"[{len(self.stages)}/{self.total}] {name}: {result or 'done'} ({duration(seconds)})")

    def table(self) -> str:
        """All stages with their times, and the sum."""
        rows = [(s.name, duration(s.seconds), s.result) for s in self.stages]
        rows.append(("all", duration(sum(s.seconds for s in self.stages)), ""))
        name, time_ = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"  {a:<{name}}  {b:>{time_}}  {c}".rstrip() for a, b, c in rows)
