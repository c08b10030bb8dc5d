"""Checkpoints on an object store: one commit wins, what is damaged or not committed is not there, old ones go."""

from __future__ import annotations

import json
from collections.abc import Iterator

import fsspec
import pytest
import torch

from workflows.errors import OneFlowError
from workflows.storage import list_urls, read_json
from workflows.training.best import Best, load_best, read_best, write_best
from workflows.training.checkpoint import Checkpoints, committed_steps
from workflows.training.commit import Commit, CommitError
from workflows.training.parallel import Worker


@pytest.fixture
def root() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    yield "memory://run"
    if memory.exists("/run"):
        memory.rm("/run", recursive=True)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((3, 2), value), "model.b": torch.tensor([value], dtype=torch.bfloat16)}


def save(checkpoints: Checkpoints, step: int, value: float) -> None:
    checkpoints.save(step, tensors(value), {"step": step, "note": value})
    checkpoints.wait()


def restored(root: str) -> tuple[int, float] | None:
    held = tensors(0.0)
    checkpoints = Checkpoints(root, keep=9)
    found = checkpoints.restore(held)
    checkpoints.close()
    if found is None:
        return None
    assert found.state["note"] == held["model.a"][0, 0] == held["model.b"][0]
    return found.step, held["model.a"][0, 0].item()


def test_the_newest_comes_back_and_only_the_last_are_kept(alone: Worker, root: str) -> None:
    assert restored(root) is None
    checkpoints = Checkpoints(root, keep=2)
    for step in (10, 20, 30):
        save(checkpoints, step, step / 10)
    checkpoints.close()
    assert committed_steps(root) == [30, 20]
    assert restored(root) == (30, 3.0)
    assert not [url for url in list_urls("memory://run/**") if "step-000000010" in url]


def test_what_is_saved_is_the_state_of_that_moment(alone: Worker, root: str) -> None:
    checkpoints, held = Checkpoints(root, keep=2), tensors(1.0)
    checkpoints.save(1, held, {"note": 1.0})
    checkpoints.staged()
    held["model.a"].fill_(9.0)
    checkpoints.close()
    assert restored(root) == (1, 1.0)


def test_a_commit_that_is_there_stays_and_the_loser_cleans_up(alone: Worker, root: str) -> None:
    for value in (1.0, 2.0):
        checkpoints = Checkpoints(root, keep=2)
        save(checkpoints, 10, value)
        checkpoints.close()
    assert restored(root) == (10, 1.0)
    assert len(list_urls("memory://run/step-*/*")) == 1


@pytest.mark.parametrize("damage", ["changed", "gone", "no commit"])
def test_a_damaged_checkpoint_is_passed_over_and_written_anew(alone: Worker, root: str, damage: str) -> None:
    checkpoints = Checkpoints(root, keep=2)
    save(checkpoints, 10, 1.0)
    save(checkpoints, 20, 2.0)
    checkpoints.close()
    memory = fsspec.filesystem("memory")
    commit = read_json(f"{root}/commits/step-000000020.json")
    [file] = list_urls(f"{root}/{commit['directory']}/*")
    if damage == "changed":
        memory.pipe(file, memory.cat_file(file)[:-1] + b"?")
    elif damage == "gone":
        memory.rm(file)
    else:
        memory.pipe("/run/commits/step-000000020.json", b"{}")
    assert restored(root) == (10, 1.0)

    checkpoints = Checkpoints(root, keep=2)
    checkpoints.restore(tensors(0.0))
    save(checkpoints, 20, 5.0)
    checkpoints.close()
    assert restored(root) == (20, 5.0)


def test_a_failure_while_writing_is_told_at_the_next_call(alone: Worker) -> None:
    checkpoints = Checkpoints("/proc/nowhere/run", keep=2, max_failed=1)
    checkpoints.save(1, tensors(1.0), {})
    with pytest.raises(OneFlowError, match="/proc/nowhere/run"):
        checkpoints.wait()


def test_commits_are_plain_json_and_refuse_what_is_not(alone: Worker, root: str) -> None:
    checkpoints = Checkpoints(root, keep=2)
    save(checkpoints, 10, 1.0)
    checkpoints.close()
    tree = json.loads(fsspec.filesystem("memory").cat_file("/run/commits/step-000000010.json"))
    assert Commit.from_json(tree).to_json() == tree
    assert tree["tensors"]["model.b"][:2] == ["bfloat16", [1]]
    for wrong in ({}, [], {**tree, "schema": 2}, {**tree, "tensors": {"a": ["nodtype", [1], []]}}):
        with pytest.raises(CommitError):
            Commit.from_json(wrong)


def test_the_best_weights_are_those_of_the_lowest_loss(root: str) -> None:
    assert read_best(root) is None
    with pytest.raises(OneFlowError, match="no evaluated weights yet"):
        load_best(root)
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        write_best(root, step, loss, {"w": torch.tensor([loss])})
    best, weights = load_best(root)
    assert (best.step, best.loss, weights["w"].item()) == (20, 2.0, 2.0)
    assert len(list_urls(f"{root}/best/*")) == 1

    memory = fsspec.filesystem("memory")
    memory.pipe(f"/run/{best.file}", b"no weights")
    with pytest.raises(OneFlowError, match="differ from their digest"):
        load_best(root)


def test_without_held_out_loss_the_last_is_the_best() -> None:
    first, second = Best(1, None, "a", ""), Best(2, None, "b", "")
    assert second.beats(first)
    assert Best(3, 1.0, "c", "").beats(Best(2, 1.0, "b", ""))
    assert not Best(3, 1.1, "c", "").beats(Best(2, 1.0, "b", ""))
