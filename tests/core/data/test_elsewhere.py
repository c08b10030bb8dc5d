"""Reading ahead in a process: the same packs, errors with their names, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from oneflow_core.data.elsewhere import ReadingError, read_elsewhere
from oneflow_core.data.index import ShardError
from oneflow_core.data.loader import Corpus, Loader, LoaderConfig
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from tests.core.data import test_loader
from tests.core.data.test_loader import Example, Pack, collate, prepare
from tests.core.data.written import write_corpus

CONFIG = LoaderConfig(tokens=test_loader.TOKENS, lanes=2, seed=3, window=8)


@dataclass(frozen=True)
class OfBlock:
    """Prepares differently in every block of three steps."""

    block: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Example:
        made = prepare(sample, rng)
        return Example(f"{self.block}:{made.doc_id}", made.draw, max(1, made.length - self.block))


def loader(manifest: Manifest, config: LoaderConfig) -> Loader[Example, Pack]:
    def prepare_at(step: int) -> OfBlock:
        return OfBlock(step // 3)

    return Loader([Corpus(manifest)], config, prepare=prepare, prepare_at=prepare_at, collate=collate)


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "oneflow_core.data.elsewhere" in " ".join(p.cmdline())]


def test_a_process_reads_what_the_caller_would_and_ends_with_the_stream(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, "shapes", [30, 30])
    wanted = list(islice(loader(manifest, replace(CONFIG, read_ahead=0)), 20))
    elsewhere = replace(CONFIG, process=True, read_ahead=2)
    first = loader(manifest, elsewhere)
    stream = iter(first)
    assert list(islice(stream, 8)) == wanted[:8]
    state = first.state_dict()
    assert first.stats.steps == 8 and len(children()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert not children()

    second = loader(manifest, elsewhere)
    second.load_state_dict(state)
    stream = iter(second)
    assert list(islice(stream, 12)) == wanted[8:]
    (child,) = children()
    child.kill()
    with pytest.raises(ReadingError, match=r"exit code -9.*data\.reader=thread"):
        list(islice(stream, 20))
    assert not children()


def test_what_reading_raises_there_is_raised_here(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, "torn", [20])
    path = tmp_path / "torn" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match="bytes differ from their digest") as caught:
        list(islice(loader(manifest, replace(CONFIG, lanes=1, process=True)), 20))
    assert "Traceback" in caught.value.__notes__[0]
    assert not children()


def arrays(words: Iterator[int]) -> Iterator[dict[str, torch.Tensor]]:
    for word in words:
        rng = torch.Generator().manual_seed(word)
        big = torch.randn(300, 500, generator=rng)
        yield {
            "big": big,
            "turned": big.T,
            "none": torch.zeros(0, 4),
            "whole": torch.arange(word),
            "flag": big > 0,
        }


def test_tensors_arrive_as_they_are_and_can_be_written(tmp_path: Path) -> None:
    stream = read_elsewhere(arrays, lambda number: 5 + number, 1)
    for got, want in zip(islice(stream, 4), arrays(iter(range(5, 9))), strict=True):
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
        got["big"] += 1
    stream.close()  # type: ignore[attr-defined]


PARENT = """
import time
from itertools import islice
from oneflow_core.data.elsewhere import read_elsewhere
from tests.core.data.test_elsewhere import arrays
stream = read_elsewhere(arrays, lambda number: number, 2)
next(stream)
print("read", flush=True)
time.sleep(600)
"""


def test_the_process_does_not_outlive_a_killed_parent() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"read\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 300
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
