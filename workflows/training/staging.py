"""A copy of a state in host memory, laid out as the files that will hold it, taken while training computes.

Only an optimiser's step changes the state. So the copy is begun at a step's end, runs beside the next step's passes,
and is waited for before that step changes anything: by the host on a CPU, by the stream of the GPU otherwise.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from workflows.training.parallel import local
from workflows.training.plan import Piece


class Stage:
    """Memory for the files of `pieces`, kept from save to save: fresh pages cost more than the copy.

    It is made ready by a thread; on a GPU's host it is page-locked, so that the copy needs no core.
    """

    def __init__(self, pieces: tuple[Piece, ...], device: torch.device) -> None:
        self._pieces, self._device = pieces, device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._files: dict[str, Tensor] = {}
        self._locked: list[int] = []
        self._copied = threading.Event()
        self._copied.set()
        self._ready = threading.Thread(target=self._make_ready, name="staging", daemon=True)
        self._ready.start()

    def open(self) -> None:
        """The state as it is now (on a GPU: once the work enqueued so far is done) is what `copy` will copy."""
        self._copied.clear()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy and return when it is done; in another thread than the one that trains."""
        try:
            self._ready.join()
            with torch.cuda.stream(self._stream), torch.no_grad():
                for piece in self._pieces:
                    _fill(self._files[piece.name], piece, tensors)
        finally:
            self._copied.set()
        if self._stream is not None:
            self._stream.synchronize()

    def wait(self) -> None:
        """Return when the state may be changed; on a GPU work enqueued from now on waits there."""
        self._copied.wait()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def files(self) -> dict[str, Callable[[], memoryview]]:
        """What gives the bytes of every file, by name; they share the stage's memory."""
        return {name: partial(_bytes, held) for name, held in self._files.items()}

    def close(self) -> None:
        """Give the memory back."""
        self._ready.join()
        for address in self._locked:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._locked, self._files = [], {}

    def _make_ready(self) -> None:
        for piece in self._pieces:
            held = self._files[piece.name] = _room(piece)
            if self._on_gpu:
                self._lock(held)

    def _lock(self, held: Tensor) -> None:
        """Page-lock the memory as it is: torch's own pinned memory is rounded up to powers of two."""
        torch.cuda.set_device(self._device)
        if int(torch.cuda.cudart().cudaHostRegister(held.data_ptr(), held.nbytes, 0)) == 0:
            self._locked.append(held.data_ptr())


def piece_bytes(piece: Piece, tensors: Mapping[str, Tensor]) -> memoryview:
    """The bytes of a file, made now."""
    held = _room(piece)
    with torch.no_grad():
        _fill(held, piece, tensors, wait=True)
    return _bytes(held)


def _room(piece: Piece) -> Tensor:
    """Memory for a file, with its first bytes; every page is touched."""
    held = torch.empty(piece.bytes, dtype=torch.uint8).zero_()
    held[: len(piece.head)] = torch.frombuffer(bytearray(piece.head), dtype=torch.uint8)
    return held


def _fill(room: Tensor, piece: Piece, tensors: Mapping[str, Tensor], *, wait: bool = False) -> None:
    for name, place in piece.chunks:
        held = room[place.begin : place.end].view(place.kind.dtype).view(place.kind.shape)
        held.copy_(local(tensors[name].detach()), non_blocking=not wait)


def _bytes(held: Tensor) -> memoryview:
    return held.numpy().data
