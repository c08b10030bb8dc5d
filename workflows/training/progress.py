"""How far a run is, by way of its storage: rank 0 writes it, whoever started the run reads and tells it."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from workflows.errors import OneFlowError
from workflows.storage import exists, join, read_json, write_json
from workflows.training.goodput import Goodput, read

log = logging.getLogger(__name__)

FILE = "progress.json"
POLL_S = 2.0
SHOWN = ("train/loss", "train/text/ce", "train/text/rate_regret", "train/text/zero", "train/image/mse")
SHORT = {"text/ce": "ce", "text/rate_regret": "rate", "text/zero": "zero", "image/mse": "image"}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; `metrics` are the latest."""

    step: int
    steps: int
    done: float
    """Share of the budget, 0 to 1."""
    elapsed_s: float
    eta_s: float
    metrics: Mapping[str, float]
    goodput: Mapping[str, float] = field(default_factory=dict)
    """The fields of `goodput.Goodput`; empty in what earlier versions wrote."""


class ProgressWriter:
    """Writes the newest progress from a thread of its own, not more often than it is read.

    A store that is away holds up nobody, and what it missed is written when it is back.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._newest: Progress | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="progress-writer", daemon=True)
        self._thread.start()

    def __call__(self, progress: Progress) -> None:
        """Replace what was written before; returns at once."""
        with self._changed:
            self._newest = progress
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Until the newest is written, for at most `timeout_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closing)
                progress, self._newest = self._newest, None
            if progress is None:
                return
            try:
                write_json(join(self._root, FILE), dataclasses.asdict(progress))
            except OneFlowError as error:
                log.warning("progress was not written: %s", error)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, POLL_S)


def read_progress(root: str) -> dict[str, Any] | None:
    """The fields of the `Progress` written last; None where there is none, or storage does not answer just now."""
    try:
        url = join(root, FILE)
        return dict(read_json(url)) if exists(url) else None
    except OneFlowError as error:
        log.debug("progress cannot be read: %s", error)
        return None


def read_goodput(root: str) -> Goodput | None:
    """The account in the progress written last, or None."""
    return read((read_progress(root) or {}).get("goodput"))


def progress_line(progress: Progress) -> str:
    """One line for a terminal."""
    shown = {name.removeprefix("train/"): v for name, v in progress.metrics.items() if name in SHOWN}
    parts = " ".join(f"{SHORT.get(name, name)} {value:.3f}" for name, value in shown.items())
    speed = progress.metrics.get("speed/tokens_per_s", 0.0)
    held = progress.metrics.get("heldout/loss")
    tail = f" heldout {held:.3f}" if held is not None else ""
    clock = f"{progress.elapsed_s:.0f} s, {progress.eta_s:.0f} s left"
    return f"step {progress.step} {progress.done:4.0%} {parts}{tail} {speed:,.0f} tokens/s ({clock})"


@contextmanager
def watched(root: str, say: Callable[[str], None]) -> Iterator[None]:
    """Tell, while the context is open, the progress of the run at `root` whenever it changes."""
    stop = threading.Event()
    thread = threading.Thread(target=_tell, args=(root, say, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # A store that is away is not waited for: the last line is missed then.
        thread.join(2 * POLL_S)


def _tell(root: str, say: Callable[[str], None], stop: threading.Event) -> None:
    told = _step(read_progress(root))
    ended = False
    while not ended:
        ended = stop.wait(POLL_S)
        now = read_progress(root)
        if now and _step(now) != told:
            told = _step(now)
            with contextlib.suppress(TypeError):
                # A newer version may have written further fields.
                say(f"train: {progress_line(Progress(**now))}")


def _step(told: Mapping[str, Any] | None) -> Any:
    return told and told["step"]
