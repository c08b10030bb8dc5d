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
from typing import Any

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
from workflows.serving.line import Broken
from workflows.serving.model import Joining, LocalModel, Model, ModelGone
from workflows.serving.model_process import ModelProcess
from workflows.serving.ticket import Work
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
    model = ModelProcess(str(directory), places=2, dtype=dtype)
    yield model
    model.close()
    assert not psutil.pid_exists(model.pid)


def make(model: Model) -> tuple[dict[int, GeneratedDocument], dict[int, list[Snapshot]]]:
    """The documents of PROMPTS by number, of which two have a place at once; and what was seen of the first two."""
    done, seen = dict[int, GeneratedDocument](), dict[int, list[Snapshot]]({0: [], 1: []})
    for key, prepared in enumerate(model.prepare(PROMPTS, SEEDS, OPTIONS)):
        model.join(key, Joining(prepared, watched=key < 2))
    joined = list[int]()
    while len(done) < len(PROMPTS):
        freed, step = len(done) > 0, model.step()
        joined += step.joined
        assert 1 <= step.size <= model.facts.places == 2
        assert len(joined) == 3 or not freed  # who waits joins at the step after one has left
        done |= {key: d for key, d in step.done.items() if isinstance(d, GeneratedDocument)}
        for key, snapshot in step.seen.items():
            seen[key].append(snapshot)
    assert joined == [0, 1, 2]
    return done, seen


def test_it_makes_what_it_makes_in_this_process(directory: Path, dtype: str, elsewhere: ModelProcess) -> None:
    here = LocalModel(OneFlowPipeline.from_pretrained(directory, dtype=DTYPES[dtype]), 2)
    assert elsewhere.facts == here.facts
    (ours, seen_here), (theirs, seen_there) = make(here), make(elsewhere)
    for number, document in ours.items():
        other = theirs[number]
        assert (document.text, document.trace) == (other.text, other.trace)
        for a, b in zip(document.images, other.images, strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    for number, snapshots in seen_here.items():
        assert [s.elements for s in snapshots] == [s.elements for s in seen_there[number]]
    view = next(view for s in seen_there[0] for view in s.images.values())
    assert np.array_equal(np.asarray(elsewhere.picture(view)), np.asarray(here.picture(view)))


def test_whoever_leaves_makes_room(elsewhere: ModelProcess) -> None:
    endless = elsewhere.prepare(PROMPTS[:1] * 3, [1, 2, 3], [Options(steps=10_000)] * 3)
    (short,) = elsewhere.prepare(PROMPTS[:1], [4], [Options(steps=3)])
    for key, prepared in zip((10, 11, 12, 13), (*endless, short), strict=True):
        elsewhere.join(key, Joining(prepared, watched=key < 12))
    first = elsewhere.step()
    while not first.joined:
        first = elsewhere.step()
    elsewhere.leave(12)  # which had no place yet
    elsewhere.leave(10)
    elsewhere.leave(99)
    joined, step = [*first.joined], first
    while 13 not in step.done:
        step = elsewhere.step()
        joined += step.joined
    assert joined == [10, 11, 13] and step.size == 2 and set(step.seen) == {11}
    elsewhere.leave(11)
    while step.size:
        step = elsewhere.step()
    assert not step.seen and not step.done


def test_what_is_raised_there_is_raised_here(elsewhere: ModelProcess, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temperature"):
        elsewhere.prepare(PROMPTS[:1], [1], [Options(temperature=-1.0)])
    assert elsewhere.prepare(PROMPTS[:1], [1], [Options()])
    (tmp_path / INDEX).write_text("{}")
    before = {p.pid for p in psutil.Process().children()}
    with pytest.raises(ModelDirectoryError):
        ModelProcess(str(tmp_path), places=2)
    assert {p.pid for p in psutil.Process().children()} <= before


def test_one_that_is_killed_is_told_of(directory: Path) -> None:
    model, codes = ModelProcess(str(directory), places=2), queue.Queue[int]()
    model.when_gone(codes.put)
    os.kill(model.pid, signal.SIGKILL)
    assert codes.get(timeout=60) == -signal.SIGKILL
    with pytest.raises(ModelGone):
        model.prepare(PROMPTS[:1], [1], [Options()])
    model.close()


def test_nobody_waits_for_a_model_that_is_gone(directory: Path) -> None:
    async def ask() -> list[Any]:
        model = ModelProcess(str(directory), places=1)
        engine = Engine(model, Room(9))
        work = Work(PROMPTS[0], 1, Options(steps=10_000))
        tickets = [t for _ in range(3) for t in (await engine.order([work, work])).tickets]
        while tickets[-1].prepared is None:
            await asyncio.sleep(0.01)
        os.kill(model.pid, signal.SIGKILL)
        made = await asyncio.wait_for(asyncio.gather(*(t.made for t in tickets), return_exceptions=True), 60)
        await asyncio.to_thread(engine.close)
        return made

    made = asyncio.run(ask())
    assert len(made) == 6 and all(isinstance(outcome, Broken) for outcome in made)


def test_a_slow_reader_gets_its_document_of_a_model_that_was_let_go(directory: Path) -> None:
    asked = {"segments": [], "target": "image", "steps": 4, "seed": 1, "stream": True, "previews": 1}
    request = parse(json.dumps(asked).encode(), Limits())

    async def read() -> list[str]:
        engine = Engine(ModelProcess(str(directory), places=2), Room(4))
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
        "print(ModelProcess(sys.argv[1], places=2).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=60)
