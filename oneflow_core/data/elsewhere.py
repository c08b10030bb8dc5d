"""Work done ahead of time in a process of its own: it takes nothing from the interpreter of who asks for it.

A thread that prepares documents in Python holds the interpreter while the training thread wants it after every
operator; a process does not. The child is a fresh interpreter, so no lock or device of the parent is in it; it ends
when its parent does.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from oneflow_core.wire import environment, receive, send, told

T = TypeVar("T")
W = TypeVar("W")
Make = Callable[[Iterator[W]], Iterator[T]]
"""Makes the items, one for each word that it takes; pickled."""


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    item: T


class ReadingError(RuntimeError):
    """The process that prepares data ended by itself."""


def read_elsewhere(make: Make[W, T], word_at: Callable[[int], W], ahead: int) -> Iterator[T]:
    """`make(words)`, run in another process up to `ahead` + 1 items before they are asked for; endless.

    `word_at(n)` is asked here, once for each n, at the latest when item n is wanted. What making raises is raised here
    with the child's traceback as a note. The process ends when the iterator is closed or let go.

    Raises:
        ReadingError: the process was killed.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        one_core = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=one_core)
    made: queue.Queue[_Made[T] | BaseException | None] = queue.Queue()
    threading.Thread(target=_receive_all, args=(ours, made), name="read-elsewhere", daemon=True).start()
    try:
        _tell(ours, make)
        for number in range(ahead):
            _tell(ours, word_at(number))
        for number in itertools.count(ahead):
            _tell(ours, word_at(number))
            result = made.get()
            if result is None:
                raise ReadingError(
                    f"the process that prepares data ended (exit code {process.wait()}); look for its last words, and "
                    "whether memory ran out; data.reader=thread does without it"
                )
            if isinstance(result, BaseException):
                raise result
            yield result.item
    finally:
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        process.kill()
        process.wait()
        ours.close()


def _receive_all(wire: socket.socket, made: queue.Queue[_Made[T] | BaseException | None]) -> None:
    """Takes items off the wire as they come, so that the child need not wait; None says that it is gone."""
    try:
        while True:
            made.put(receive(wire))
    except (EOFError, OSError):
        made.put(None)


def _tell(wire: socket.socket, value: object) -> None:
    """Sends; that nobody listens any more is found out by who receives."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        send(wire, value)


def _words(wire: socket.socket) -> Iterator[Any]:
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield receive(wire)


def main(descriptor: int) -> None:
    """The child: items for words, until the parent goes. Ctrl-C is the parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wire = socket.socket(fileno=descriptor)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
            make = receive(wire)
            for item in make(_words(wire)):
                send(wire, _Made(item))
    except Exception as error:
        with contextlib.suppress(OSError):
            send(wire, told(error, "in the process that prepares data"))


if __name__ == "__main__":
    from oneflow_core.data import elsewhere

    elsewhere.main(int(sys.argv[1]))
