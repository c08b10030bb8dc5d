"""The best weights of a run: pieces and a pointer; also those that an earlier version wrote."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workflows.errors import OneFlowError
from workflows.training.best import Best, load_best, read_best, write_best
from workflows.training.commit import Commit
from workflows.training.parallel import Worker

NOWHERE = Commit(0, "", (), {}, {})


def files(root: Path) -> list[Path]:
    return [path for path in (root / "best").rglob("*") if path.is_file()]


def test_the_best_weights_are_those_of_the_lowest_loss(alone: Worker, tmp_path: Path) -> None:
    root = str(tmp_path)
    assert read_best(root) is None
    with pytest.raises(OneFlowError, match="no evaluated weights yet"):
        load_best(root)
    digests = set()
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        held = {"w": torch.tensor([loss]), "b": torch.full((3, 2), step, dtype=torch.bfloat16)}
        digests.add(write_best(root, step, loss, held, "linear").sha256)
    assert len(digests) == 2
    best, weights = load_best(root)
    assert (best.step, best.loss, best.schedule, best.sha256 in digests) == (20, 2.0, "linear", True)
    assert torch.equal(weights.read("w"), torch.tensor([2.0]))
    assert torch.equal(weights.read("b"), torch.full((3, 2), 20, dtype=torch.bfloat16))
    [file] = files(tmp_path)

    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(OneFlowError, match="differ from the digest"):
        load_best(root)


def test_those_of_an_earlier_version_are_read_and_replaced(alone: Worker, tmp_path: Path) -> None:
    held = {"w": torch.randn(4, 3), "b": torch.randn(5)}
    (tmp_path / "best").mkdir()
    file = tmp_path / "best" / "step-000000010.safetensors"
    save_file(held, file, {"format": "pt"})
    pointer = {"step": 10, "loss": 2.0, "file": f"best/{file.name}", "schedule": "linear"}
    pointer["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "best.json").write_text(json.dumps(pointer))
    best, weights = load_best(str(tmp_path))
    assert (best.step, best.loss, best.schedule) == (10, 2.0, "linear")
    assert {name: kind.shape for name, kind in weights.kinds().items()} == {"w": (4, 3), "b": (5,)}
    assert all(torch.equal(weights.read(name), held[name]) for name in held)
    assert write_best(str(tmp_path), 20, 2.5, held).step == 10
    assert write_best(str(tmp_path), 30, 1.5, held).step == 30
    assert not file.exists() and len(files(tmp_path)) == 1


def test_without_held_out_loss_the_last_is_the_best() -> None:
    first = Best(1, None, NOWHERE)
    assert replace(first, step=2).beats(first)
    assert Best(3, 1.0, NOWHERE).beats(Best(2, 1.0, NOWHERE))
    assert not Best(3, 1.1, NOWHERE).beats(Best(2, 1.0, NOWHERE))
