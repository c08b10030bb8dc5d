"""Being asked to end, by SIGTERM (Kubernetes, Slurm) or SIGINT (Ctrl-C): after the step at hand, with a checkpoint.

The signal reaches one process and all have to end after the same step: the request is a number in the sum that the
ranks form at every step anyway. From the driver to workers under Ray it goes by the key-value store of Ray's head.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from workflows.errors import OneFlowError

log = logging.getLogger(__name__)

POLL_S = 1.0
_NAMESPACE = b"oneflow-stop"


class Stopped(OneFlowError):
    """The run was asked to end and did, all that it had done being kept; the exit code is that of the signal."""

    def __init__(self, what: str, cause: str, mend: str, number: int) -> None:
        super().__init__(what, cause, mend)
        self.exit_code = 128 + number


@contextmanager
def signals(told: Callable[[int], None]) -> Iterator[None]:
    """Within, the first SIGTERM or SIGINT calls `told` with its number; a second one does what it did before.

    In another thread than the main one signals cannot be received, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def receive(number: int, frame: FrameType | None) -> None:
        restore()
        told(number)

    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        restore()


def ask_workers(name: str) -> None:
    """In the driver: the workers that `asked` with this `name` are to end."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(name.encode(), b"1", overwrite=True, namespace=_NAMESPACE)


def forget(name: str) -> None:
    """In the driver: nobody is asked any more."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(name.encode(), namespace=_NAMESPACE)


def asked(name: str) -> Callable[[], bool]:
    """In a worker under Ray: tells at once whether `ask_workers` was called, as a thread saw it last."""
    from ray.experimental.internal_kv import _internal_kv_get

    seen = threading.Event()

    def look() -> None:
        while not seen.wait(POLL_S):
            try:
                if _internal_kv_get(name.encode(), namespace=_NAMESPACE):
                    seen.set()
            except Exception as error:
                # Ray's head is away, or this process is ending.
                log.debug("not known whether to stop: %s", error)

    threading.Thread(target=look, name="stopping", daemon=True).start()
    return seen.is_set
