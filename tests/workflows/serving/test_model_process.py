"""A model in a process of its own: it makes what it makes at home, passes errors on, and neither outlives the other."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from oneflow_core.model_directory import INDEX, ModelDirectoryError
from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt
from oneflow_core.running import Options, Snapshot
from tests.tiny import tiny_parts
from workflows.serving.engine import Engine, Room
from workflows.serving.events import growth
from workflows.serving.model import Joining, LocalModel, Model, ModelGone
from workflows.serving.model_process import ModelProcess
from workflows.serving.wire import Limits, parse

PROMPTS = [
    Prompt(("a red circle",), "image"),
    Prompt((Image.new("RGB", (16, 16), (200, 30, 10)),), "text"),
    Prompt(("a", Image.new("RGB", (16, 16))), "document"),
]
DTYPES = {"auto": torch.float32, "bfloat16": torch.bfloat16}
SEEDS, OPTIONS = [1, 2, 3], [Options(steps=n, previews=True) for n in (4, 6, 5)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OneFlowPipeline(tiny_parts()).save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module", params=["auto", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def elsewhere(directory: Path, dtype: str) -> Iterator[ModelProcess]:
    model = ModelProcess(str(directory), dtype=dtype)
    yield model
    model.close()
    assert not psutil.pid_exists(model.pid)


def make(model: Model) -> tuple[dict[int, GeneratedDocument], list[dict[int, Snapshot]]]:
    """The documents of PROMPTS by number, the last of which joins a step later; and what was seen at each step."""
    prepared = model.prepare(PROMPTS, SEEDS, OPTIONS)
    joining = [[Joining(p, True) for p in prepared[:2]], [Joining(prepared[2], False)]]
    told: list[int] = []
    keys, done, seen = list[int](), dict[int, GeneratedDocument](), list[dict[int, Snapshot]]()
    while len(done) < len(PROMPTS):
        turn = model.turn([], joining.pop(0) if joining else [], lambda: told.append(1))
        keys += turn.keys
        done |= {keys.index(k): d for k, d in turn.done.items() if isinstance(d, GeneratedDocument)}
        seen.append({keys.index(k): snapshot for k, snapshot in turn.seen.items()})
    assert len(told) == len(seen)
    return done, seen


def test_it_makes_what_it_makes_in_this_process(directory: Path, dtype: str, elsewhere: ModelProcess) -> None:
    here = LocalModel(OneFlowPipeline.from_pretrained(directory, dtype=DTYPES[dtype]))
    assert elsewhere.facts == here.facts
    (ours, seen_here), (theirs, seen_there) = make(here), make(elsewhere)
    for number, document in ours.items():
        other = theirs[number]
        assert (document.text, document.trace) == (other.text, other.trace)
        for a, b in zip(document.images, other.images, strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    assert [{k: s.elements for k, s in step.items()} for step in seen_here] == [
        {k: s.elements for k, s in step.items()} for step in seen_there
    ]
    view = next(view for step in seen_there for s in step.values() for view in s.images.values())
    assert np.array_equal(np.asarray(elsewhere.picture(view)), np.asarray(here.picture(view)))


def test_whoever_leaves_makes_room(elsewhere: ModelProcess) -> None:
    (prepared,) = elsewhere.prepare(PROMPTS[:1], [1], [Options(steps=1000)])
    first = elsewhere.turn([], [Joining(prepared, True)], lambda: None)
    assert first.size == 1 and set(first.seen) == set(first.keys)
    last = elsewhere.turn(first.keys, [], lambda: None)
    assert last.size == 0 and not last.seen


def test_what_is_raised_there_is_raised_here(elsewhere: ModelProcess, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temperature"):
        elsewhere.prepare(PROMPTS[:1], [1], [Options(temperature=-1.0)])
    assert elsewhere.prepare(PROMPTS[:1], [1], [Options()])
    (tmp_path / INDEX).write_text("{}")
    before = {p.pid for p in psutil.Process().children()}
    with pytest.raises(ModelDirectoryError):
        ModelProcess(str(tmp_path))
    assert {p.pid for p in psutil.Process().children()} <= before


def test_one_that_is_killed_is_told_of(directory: Path) -> None:
    model, codes = ModelProcess(str(directory)), queue.Queue[int]()
    model.when_gone(codes.put)
    os.kill(model.pid, signal.SIGKILL)
    assert codes.get(timeout=60) == -signal.SIGKILL
    with pytest.raises(ModelGone):
        model.prepare(PROMPTS[:1], [1], [Options()])
    model.close()


def test_a_slow_reader_gets_its_document_of_a_model_that_was_let_go(directory: Path) -> None:
    asked = {"segments": [], "target": "image", "steps": 4, "seed": 1, "stream": True, "previews": 1}
    request = parse(json.dumps(asked).encode(), Limits())

    async def read() -> list[str]:
        engine = Engine(ModelProcess(str(directory)), Room(2, 4))
        order = await engine.order([await engine.work(request)], watched=True)
        await order.tickets[0].made
        await asyncio.to_thread(engine.served.end)
        events = [event.split(b"\n")[0].decode() async for event in growth(engine, order, request, "g")]
        engine.pool.shutdown()
        return events

    events = asyncio.run(read())
    assert events[-1] == "event: done"


def test_it_does_not_outlive_its_parent(directory: Path) -> None:
    program = (
        "import sys; from workflows.serving.model_process import ModelProcess; "
        "print(ModelProcess(sys.argv[1]).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=60)
