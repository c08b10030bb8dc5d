"""A model in a process of its own: nothing that a replica does for HTTP takes the interpreter from the network.

The child holds the weights. It answers on three wires, each with a thread: steps of the batch (its main thread),
preparation of prompts, and pictures of estimates. It ends when its parent does; when it ends by itself, whoever
started it is told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oneflow_core.wire import environment, receive, send, told
from workflows.serving.model import Facts, Joining, LocalModel, ModelGone, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.pipeline import Prompt
    from oneflow_core.running import ImageView, Options, Prepared

log = logging.getLogger("ray.serve")

WIRES = ("turn", "prepare", "picture")
END_S = 10.0


@dataclass(frozen=True, slots=True)
class _Load:
    """What to load, and where."""

    url: str
    gpu: bool
    dtype: str
    threads: int
    """Of the network on a CPU."""


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class ModelProcess:
    """A model in a process of its own, loaded and proved.

    Raises:
        ModelSourceError, ModelDirectoryError: as `OneFlowPipeline.from_pretrained`.
        ModelGone: the process ended while it loaded.
    """

    def __init__(self, url: str, *, gpu: bool = False, dtype: str = "auto", threads: int = 1) -> None:
        pairs = {name: socket.socketpair() for name in WIRES}
        theirs = [child.fileno() for _, child in pairs.values()]
        command = [sys.executable, "-m", __name__, *map(str, theirs)]
        own = environment(OMP_NUM_THREADS=str(threads))
        self._process = subprocess.Popen(command, pass_fds=theirs, env=own)
        for _, child in pairs.values():
            child.close()
        self._wires = {name: parent for name, (parent, _) in pairs.items()}
        self._locks = {name: threading.Lock() for name in WIRES}
        self._closed = False
        try:
            self.facts: Facts = self._ask("turn", _Load(url, gpu, dtype, threads))
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's."""
        return self._process.pid

    def prepare(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: Sequence[Options]
    ) -> list[Prepared]:
        """As `Model.prepare`."""
        made: list[Prepared] = self._ask("prepare", (prompts, seeds, options))
        return made

    def turn(self, leaving: Sequence[int], joining: Sequence[Joining], meanwhile: Callable[[], None]) -> Turn:
        """As `Model.turn`."""
        made: Turn = self._ask("turn", (leaving, joining), meanwhile)
        return made

    def picture(self, view: ImageView) -> Image:
        """As `Model.picture`."""
        made: Image = self._ask("picture", (view,))
        return made

    def when_gone(self, call: Callable[[int], None]) -> None:
        """`call(exit code)`, in a thread, should the process end without having been closed."""

        def wait() -> None:
            code = self._process.wait()
            if not self._closed:
                call(code)

        threading.Thread(target=wait, name="model-process", daemon=True).start()

    def close(self) -> None:
        """Ends the process."""
        self._closed = True
        for wire in self._wires.values():
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for wire in self._wires.values():
            wire.close()

    def _ask(self, name: str, question: object, meanwhile: Callable[[], None] | None = None) -> Any:
        wire = self._wires[name]
        with self._locks[name]:
            try:
                send(wire, question)
                try:
                    if meanwhile:
                        meanwhile()
                finally:
                    answer = receive(wire)
            except (EOFError, OSError) as error:
                raise ModelGone("the process of the model ended; see the log for its last words") from error
        if isinstance(answer, _Failed):
            raise answer.error
        return answer


def _loaded(wanted: _Load) -> LocalModel:
    """On the CPU or on this replica's GPU; it has made one document in one step."""
    import torch

    from oneflow_core.pipeline import OneFlowPipeline, Prompt

    torch.set_num_threads(wanted.threads)
    half = wanted.dtype == "bfloat16" or (wanted.dtype == "auto" and wanted.gpu)
    kind = torch.bfloat16 if half else torch.float32
    pipeline = OneFlowPipeline.from_pretrained(wanted.url, device="cuda" if wanted.gpu else "cpu", dtype=kind)
    # What cannot do that is not to be served.
    pipeline([Prompt(("a",), "image")], steps=1)
    return LocalModel(pipeline)


def _serve(wire: socket.socket, answer: Callable[..., object], threads: int) -> None:
    """Questions in their order, until the parent goes; then this process goes too, whatever it is doing."""
    import torch

    torch.set_num_threads(threads)
    try:
        while True:
            question = receive(wire)
            try:
                made = answer(*question)
            except Exception as error:
                made = _Failed(told(error, "in the process of the model"))
            send(wire, made)
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        # A wire that nobody answers any more would be waited at for ever.
        traceback.print_exc()
        os._exit(1)


def main(descriptors: Sequence[int]) -> None:
    """The child. Ctrl-C is the parent's affair."""
    from workflows.process import SWITCH_S

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    turns, prompts, pictures = (socket.socket(fileno=number) for number in descriptors)
    try:
        wanted = receive(turns)
        model = _loaded(wanted)
    except Exception as error:
        with contextlib.suppress(OSError):
            send(turns, _Failed(told(error, "in the process of the model")))
        return
    for wire, answer in ((prompts, model.prepare), (pictures, model.picture)):
        threading.Thread(target=_serve, args=(wire, answer, wanted.threads), daemon=True).start()
    with contextlib.suppress(OSError):
        send(turns, model.facts)
    _serve(turns, lambda leaving, joining: model.turn(leaving, joining, lambda: None), wanted.threads)


if __name__ == "__main__":
    from workflows.serving import model_process

    model_process.main([int(number) for number in sys.argv[1:]])
