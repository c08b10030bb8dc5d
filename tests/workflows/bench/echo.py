"""Children for `test_child`."""

import sys
from collections.abc import Callable
from typing import Any


def echo(word: str) -> Callable[..., dict[str, Any]]:
    print("chatter of a library")

    def answer(**question: Any) -> dict[str, Any]:
        print("more of it")
        if question.get("fail"):
            sys.stderr.write("a warning\n")
            raise MemoryError("no room")
        return {"word": word, "asked": question, "path": sys.path[:3]}

    return answer
