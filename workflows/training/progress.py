"""How far a run is, by way of its storage: rank 0 writes it, whoever started the run reads and tells it."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from workflows.errors import OneFlowError
from workflows.storage import exists, join, read_json, write_json
from workflows.training.loop import Progress
from workflows.training.worker import progress_line

log = logging.getLogger(__name__)

FILE = "progress.json"
POLL_S = 2.0


def write_progress(root: str, progress: Progress) -> None:
    """Replace what was written before."""
    write_json(join(root, FILE), dataclasses.asdict(progress))


def read_progress(root: str) -> dict[str, Any] | None:
    """The fields of the `Progress` written last; None where there is none, or storage does not answer just now."""
    try:
        url = join(root, FILE)
        return dict(read_json(url)) if exists(url) else None
    except OneFlowError as error:
        log.debug("progress cannot be read: %s", error)
        return None


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
        thread.join()


def _tell(root: str, say: Callable[[str], None], stop: threading.Event) -> None:
    told = read_progress(root)
    ended = False
    while not ended:
        ended = stop.wait(POLL_S)
        now = read_progress(root)
        if now and now != told:
            told = now
            say(f"train: {progress_line(Progress(**now))}")
