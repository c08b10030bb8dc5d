"""Goodput: which share of a run's wall time went into steps that counted, and where the rest went.

At any moment the time of a run goes to one part. A checkpoint carries the account as it was when it was taken, the
progress object as it was when a step was told last; a later attempt finds both, and so knows what the time since
the checkpoint came to: what was worked on until the last sign of life is lost, all else was spent on starting again.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Part = Literal["steps", "data_wait", "evaluate", "checkpoint", "lost", "restart"]
USEFUL: tuple[Part, ...] = ("steps", "data_wait", "evaluate", "checkpoint")
"""Parts that are lost with the steps that they belong to."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """Seconds of a run by part, from its first start to `at`; the parts sum to `wall_s`."""

    begun: float
    """Seconds since 1970 at which the run was started first."""
    at: float
    """Seconds since 1970 to which the account goes."""
    steps: float = 0.0
    """Steps that counted, each once: forward, backward, optimiser, logging."""
    data_wait: float = 0.0
    """Waiting for packs before such steps."""
    evaluate: float = 0.0
    """Held-out losses and samples after such steps."""
    checkpoint: float = 0.0
    """What saving held up of them."""
    lost: float = 0.0
    """Work that a later attempt did again."""
    restart: float = 0.0
    """Starting up, the first time too, and what lies between the last sign of an attempt and the next start."""

    @property
    def wall_s(self) -> float:
        """Seconds since the first start."""
        return self.at - self.begun

    @property
    def share(self) -> float:
        """Seconds in steps that counted by all seconds, 0 to 1."""
        return self.steps / self.wall_s if self.wall_s > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """`goodput/share`, and the seconds of every part as `goodput/<part>_s`."""
        parts = {f"goodput/{f.name}_s": getattr(self, f.name) for f in fields(self)[2:]}
        return {"goodput/share": self.share, **parts}

    def spent(self, part: Part, until: float) -> "Goodput":
        """The account when the time up to `until` went to `part`; a clock that went back adds nothing."""
        until = max(until, self.at)
        return replace(self, at=until, **{part: getattr(self, part) + until - self.at})

    def useful(self) -> float:
        """Seconds that would be lost if nothing of this account were kept."""
        return float(sum(getattr(self, part) for part in USEFUL))


def resumed(committed: Goodput | None, last: Goodput | None, begun: float, now: float) -> Goodput:
    """The account of an attempt that is ready to go on.

    Args:
        committed: the account in the checkpoint that it goes on from; None: from nothing.
        last: the newest account that an earlier attempt left anywhere, which goes on from `committed` or from one
            that came of it; None: there is none.
        begun: when the run was started, if there is no account that says so.
        now: seconds since 1970.
    """
    kept = committed or Goodput(last.begun if last else begun, last.begun if last else begun)
    seen = last if last is not None and last.at >= kept.at else kept
    redone = seen.useful() - kept.useful()
    return replace(kept, at=seen.at, lost=seen.lost + redone, restart=seen.restart).spent("restart", now)


def read(tree: Mapping[str, Any] | None) -> Goodput | None:
    """The account that `dataclasses.asdict` made a mapping of; None where there is none (earlier versions)."""
    return Goodput(**tree) if tree else None


class Account:
    """The account of a running attempt: `enter` says what the time goes to from now on."""

    def __init__(self, goodput: Goodput, clock: Callable[[], float] = time.time) -> None:
        self._goodput, self._clock = goodput, clock
        self._part: Part = "restart"

    def enter(self, part: Part) -> None:
        """What was done until now is over, `part` begins."""
        self.now()
        self._part = part

    def now(self) -> Goodput:
        """The account up to this moment."""
        self._goodput = self._goodput.spent(self._part, self._clock())
        return self._goodput
