"""Several answers to one question: which is the target."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from workflows.corpus.sources.rows import RowError


def chosen(answers: Any) -> tuple[str, list[str]]:
    """The most common answer, of equally common ones that which comes first; and all of them, as they are.

    An answer is text, a number, or a mapping with `answer`; two are equal that differ in case or in blanks around them.

    Raises:
        RowError: there is none.
    """
    given = answers if isinstance(answers, list | tuple) else [answers]
    texts = [text for text in map(_text, given) if text.strip()]
    if not texts:
        raise RowError("answer missing")
    counts = Counter(_plain(text) for text in texts)
    most = max(counts.values())
    return next(text for text in texts if counts[_plain(text)] == most), texts


def _text(answer: Any) -> str:
    if isinstance(answer, Mapping):
        answer = answer.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise RowError("answer not a string")
    return str(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
