"""A lineage as a page that needs nothing else, and its files as JSONL."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from oneflow_core.data.manifest import Input
from workflows.lineage.chain import ModelLink
from workflows.templates import templates
from workflows.training.identity import EXPORTED, WEIGHTS

NAMES = tuple(field.name for field in fields(Input))


def render(model: ModelLink) -> str:
    """The page; all that comes from outside is escaped."""
    environment = templates(Path(__file__).parent)
    return environment.get_template("page.html").render(model=model, digests=(EXPORTED, WEIGHTS))


def files_jsonl(model: ModelLink) -> bytes:
    """A line a source file: the model and the corpus that it went into, where it was, its size and digest."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _rows(model)).encode()


def _rows(model: ModelLink) -> Iterator[dict[str, object]]:
    for corpus in model.corpora:
        into = {"model": model.uri, "corpus": f"{corpus.ref.name}@{corpus.ref.version}"}
        for entry in corpus.inputs():
            yield into | {name: getattr(entry, name) for name in NAMES}
    if model.parent:
        yield from _rows(model.parent)
