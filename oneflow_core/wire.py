"""Python values between a process and the child that it started, over a socket that only the two of them hold."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import sys
import traceback
from typing import Any

import torch

_SIZE = struct.Struct("<Q")


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose bytes travel beside the pickle without being copied."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if type(obj) is torch.Tensor else NotImplemented


def send(wire: socket.socket, value: object) -> None:
    """Writes one value.

    Raises:
        OSError: nobody reads any more.
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    wire.sendall(b"".join(map(_SIZE.pack, (len(parts), *(part.nbytes for part in parts)))))
    for part in parts:
        wire.sendall(part)


def receive(wire: socket.socket) -> Any:
    """The next value. Both ends are ours: what is unpickled here comes from the process at the other one.

    Raises:
        EOFError, OSError: the other end is closed.
    """
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


def told(error: Exception, where: str) -> Exception:
    """The error with this process's traceback as a note, or where it cannot travel one that says the same."""
    error.add_note(f"{where}:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return error


def environment(**own: str) -> dict[str, str]:
    """What a child of this interpreter is started with: its modules, and `own` variables."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | own
