"""Work done ahead of time in a process of its own: it takes nothing from the interpreter of who asks for it.

A thread that prepares documents in Python holds the interpreter while the training thread wants it after every
operator; a process does not. The child is a fresh interpreter, so no lock or device of the parent is in it; it ends
when its parent does.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
W = TypeVar("W")
Make = Callable[[Iterator[W]], Iterator[T]]
"""Makes the items, one for each word that it takes; pickled."""
_SIZE = struct.Struct("<Q")


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
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=_environment())
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


def _environment() -> dict[str, str]:
    """One thread, no GPU, and the parent's modules."""
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    return os.environ | own


def _receive_all(wire: socket.socket, made: queue.Queue[_Made[T] | BaseException | None]) -> None:
    """Takes items off the wire as they come, so that the child need not wait; None says that it is gone."""
    try:
        while True:
            made.put(_receive(wire))
    except (EOFError, OSError):
        made.put(None)


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose bytes travel beside the pickle without being copied."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if type(obj) is torch.Tensor else NotImplemented


def _tell(wire: socket.socket, value: object) -> None:
    """Sends; that nobody listens any more is found out by who receives."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _send(wire, value)


def _send(wire: socket.socket, value: object) -> None:
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    wire.sendall(b"".join(map(_SIZE.pack, (len(parts), *(part.nbytes for part in parts)))))
    for part in parts:
        wire.sendall(part)


def _receive(wire: socket.socket) -> Any:
    """Both ends are ours: what is unpickled here comes from the process that this one started."""
    (count,) = _SIZE.unpack(_exactly(wire, _SIZE.size))
    sizes = struct.unpack(f"<{count}Q", _exactly(wire, _SIZE.size * count))
    first, *buffers = [_exactly(wire, size) for size in sizes]
    return pickle.loads(first, buffers=buffers)


def _exactly(wire: socket.socket, size: int) -> bytearray:
    held = bytearray(size)
    view = memoryview(held)
    while view:
        got = wire.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return held


def _words(wire: socket.socket) -> Iterator[Any]:
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield _receive(wire)


def main(descriptor: int) -> None:
    """The child: items for words, until the parent goes. Ctrl-C is the parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wire = socket.socket(fileno=descriptor)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
            make = _receive(wire)
            for item in make(_words(wire)):
                _send(wire, _Made(item))
    except Exception as error:
        error.add_note(f"in the process that prepares data:\n{traceback.format_exc()}")
        with contextlib.suppress(OSError):
            _send(wire, _portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot travel one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return error


if __name__ == "__main__":
    from oneflow_core.data import elsewhere

    elsewhere.main(int(sys.argv[1]))
