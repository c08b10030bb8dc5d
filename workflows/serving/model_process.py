"""A model in a process of its own: nothing that a replica does for HTTP takes the interpreter from the network.

The child holds the weights. Its main thread makes one step of the batch after the other and sends what each has
brought: nobody is waited for in between. Who joins and who leaves comes the other way on the same wire, to a thread.
Two more wires, each with a thread, have questions and answers: preparation of prompts, and pictures of estimates. The
child ends when its parent does; when it ends by itself, whoever started it is told.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oneflow_core.wire import environment, receive, send, told
from workflows.serving.model import Facts, Joining, LocalModel, ModelGone, Step

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.pipeline import Prompt
    from oneflow_core.running import ImageView, Options, Prepared

log = logging.getLogger("ray.serve")

WIRES = ("steps", "prepare", "picture")
END_S = 10.0


@dataclass(frozen=True, slots=True)
class _Load:
    """What to load, and where."""

    url: str
    gpu: bool
    dtype: str
    threads: int
    """Of the network on a CPU."""
    places: int


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class ModelProcess:
    """A model in a process of its own, loaded and proved.

    Raises:
        ModelSourceError, ModelDirectoryError: as `OneFlowPipeline.from_pretrained`.
        ModelGone: the process ended while it loaded.
    """

    def __init__(
        self, url: str, *, places: int, gpu: bool = False, dtype: str = "auto", threads: int = 1
    ) -> None:
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
            self.facts: Facts = self._ask("steps", _Load(url, gpu, dtype, threads, places))
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

    def join(self, key: int, joining: Joining) -> None:
        """As `Model.join`."""
        self._tell(key, joining)

    def leave(self, key: int) -> None:
        """As `Model.leave`."""
        self._tell(key, None)

    def step(self) -> Step:
        """As `Model.step`."""
        with _both_there():
            made: Step = receive(self._wires["steps"])
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

    def _ask(self, name: str, question: object) -> Any:
        wire = self._wires[name]
        with self._locks[name], _both_there():
            send(wire, question)
            answer = receive(wire)
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def _tell(self, key: int, joining: Joining | None) -> None:
        with self._locks["steps"], _both_there():
            send(self._wires["steps"], (key, joining))


@contextlib.contextmanager
def _both_there() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise ModelGone("the process of the model ended; see the log for its last words") from error


def _loaded(wanted: _Load) -> LocalModel:
    """On the CPU or on this replica's GPU; it has made one document in one step."""
    import torch

    from oneflow_core.pipeline import OneFlowPipeline, Prompt

    torch.set_num_threads(wanted.threads)
    kind = torch.bfloat16 if wanted.dtype == "bfloat16" else torch.float32
    pipeline = OneFlowPipeline.from_pretrained(wanted.url, device="cuda" if wanted.gpu else "cpu", dtype=kind)
    # What cannot do that is not to be served.
    pipeline([Prompt(("a",), "image")], steps=1)
    return LocalModel(pipeline, wanted.places)


def _until_parted(turn: Callable[[], object]) -> None:
    """Turn after turn, until the parent goes; then this process goes too, whatever it is doing."""
    try:
        while True:
            turn()
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        # A wire that nobody answers any more would be waited at for ever.
        traceback.print_exc()
        os._exit(1)


def _answer(wire: socket.socket, answer: Callable[..., object]) -> None:
    question = receive(wire)
    try:
        made = answer(*question)
    except Exception as error:
        made = _Failed(told(error, "in the process of the model"))
    send(wire, made)


def _hear(wire: socket.socket, model: LocalModel) -> None:
    key, joining = receive(wire)
    if joining is None:
        model.leave(key)
    else:
        model.join(key, joining)


def main(descriptors: Sequence[int]) -> None:
    """The child. Ctrl-C is the parent's affair."""
    from workflows.process import SWITCH_S

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    steps, prompts, pictures = (socket.socket(fileno=number) for number in descriptors)
    try:
        wanted = receive(steps)
        model = _loaded(wanted)
    except Exception as error:
        with contextlib.suppress(OSError):
            send(steps, _Failed(told(error, "in the process of the model")))
        return
    others: list[Callable[[], None]] = [
        lambda: _hear(steps, model),
        lambda: _answer(prompts, model.prepare),
        lambda: _answer(pictures, model.picture),
    ]
    for other in others:
        threading.Thread(target=_started, args=(wanted.threads, other), daemon=True).start()
    with contextlib.suppress(OSError):
        send(steps, model.facts)
    _until_parted(lambda: send(steps, model.step()))


def _started(threads: int, turn: Callable[[], None]) -> None:
    import torch

    torch.set_num_threads(threads)
    _until_parted(turn)


if __name__ == "__main__":
    from workflows.serving import model_process

    model_process.main([int(number) for number in sys.argv[1:]])
