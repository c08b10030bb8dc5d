"""A function in a process of its own: with fresh memory to be measured, or with packages that must not be ours.

The child answers questions line by line in JSON, so that sides can be measured in turn without starting anew.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from workflows.errors import OneFlowError

ROOT = Path(__file__).parents[2]


class Child:
    """`target` ("module:factory") is called with `arguments` in the child; what it returns answers each question.

    Args:
        paths: directories that the child imports from before all others.

    Raises:
        OneFlowError: the child ended; the message has its last words.
    """

    def __init__(self, target: str, arguments: dict[str, Any], paths: Sequence[Path] = ()) -> None:
        self._target = target
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        searched = [str(path) for path in (*paths, ROOT)] + [os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, searched))},
            text=True,
        )
        self._say({"target": target, "arguments": arguments})

    def ask(self, **question: Any) -> dict[str, Any]:
        """What the child answers."""
        self._say(question)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the child."""
        self._process.communicate()
        self._words.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.terminate()
        self.close()

    def _say(self, words: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _fail(self) -> None:
        code = self._process.wait()
        self._words.seek(0)
        last = self._words.read().decode(errors="replace").strip().splitlines()[-1:]
        cause = last[0] if last else f"it ended with code {code} and said nothing"
        raise OneFlowError(f"benchmark process {self._target}", cause, "see whether it imports, and memory")


def serve() -> None:
    """The child's side; what libraries print goes to stderr, so that stdout holds answers alone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    module, _, factory = first["target"].partition(":")
    answer = getattr(import_module(module), factory)(**first["arguments"])
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
