"""Checkpoints on an object store: one commit wins, what is damaged or not committed is not there, old ones go."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load

from workflows.errors import OneFlowError
from workflows.storage import list_urls, read_json
from workflows.training.checkpoint import Checkpoints, committed_steps
from workflows.training.commit import Commit, CommitError
from workflows.training.parallel import Worker
from workflows.training.retention import TakenOver


@pytest.fixture
def root() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    yield "memory://run"
    if memory.exists("/run"):
        memory.rm("/run", recursive=True)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((3, 2), value), "model.b": torch.tensor([value], dtype=torch.bfloat16)}


def directories(root: Path) -> set[str]:
    """Steps that have files below a local root."""
    return {path.name for path in root.iterdir() if path.name.startswith("step-")}


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


def test_a_save_that_fails_is_counted_and_only_several_in_a_row_are_an_error(
    alone: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "run"
    root.write_text("in the way")
    checkpoints = Checkpoints(str(root), keep=2, max_failed=2)
    save(checkpoints, 1, 1.0)
    assert checkpoints.metrics() == {"checkpoint/failed": 1.0}
    assert "the checkpoint of step 1 was not written" in caplog.text
    root.unlink()
    save(checkpoints, 2, 2.0)
    assert checkpoints.metrics()["checkpoint/mb"] == 26 / 1e6
    root.rename(tmp_path / "away")
    root.write_text("in the way")
    save(checkpoints, 3, 3.0)
    with pytest.raises(OneFlowError, match="2 saves in a row failed, the last because: .*a file, not a dir"):
        save(checkpoints, 4, 4.0)
    assert checkpoints.failed == 3
    root.unlink()
    (tmp_path / "away").rename(root)
    assert restored(str(root)) == (2, 2.0)


def test_a_run_does_not_end_without_its_last_checkpoint(alone: Worker, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    checkpoints = Checkpoints(str(tmp_path / "run"), keep=2)
    checkpoints.save(1, tensors(1.0), {})
    with pytest.raises(OneFlowError, match="1 saves in a row"):
        checkpoints.close()


def test_every_so_many_steps_one_is_kept_for_good(alone: Worker, root: str) -> None:
    checkpoints = Checkpoints(root, keep=1, keep_every=20)
    for step in range(10, 80, 10):
        save(checkpoints, step, step / 10)
    checkpoints.close()
    assert committed_steps(root) == [70, 60, 40, 20]
    assert len(list_urls(f"{root}/step-*/*")) == 4


def test_the_newest_attempt_removes_what_earlier_ones_left_and_they_commit_no_more(
    alone: Worker, tmp_path: Path
) -> None:
    first = Checkpoints(str(tmp_path), keep=9)
    save(first, 10, 1.0)
    [kept] = directories(tmp_path)
    for left in ("step-000000015-dead-1", "step-000000010-dead-1", "step-000000090-0123abcd"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "part-00000.safetensors").write_bytes(b"half")
    for left in ("commits/.step-000000015.json", "attempts/.000001.json"):
        (tmp_path / f"{left}.{uuid.uuid4().hex}").write_bytes(b"half")

    second = Checkpoints(str(tmp_path), keep=9)
    save(second, 20, 2.0)
    [ours] = directories(tmp_path) - {kept}
    assert ours.startswith("step-000000020-")
    files = {path.name for part in ("commits", "attempts") for path in (tmp_path / part).iterdir()}
    assert files == {"step-000000010.json", "step-000000020.json", "000002.json"}
    with pytest.raises(TakenOver, match="attempt 2 has taken it over"):
        save(first, 30, 3.0)
    assert committed_steps(str(tmp_path)) == [20, 10]
    save(second, 30, 3.5)
    assert restored(str(tmp_path)) == (30, 3.5)


def test_files_are_of_bounded_size_and_any_reader_of_safetensors_reads_them(alone: Worker, root: str) -> None:
    held = {
        "a": torch.arange(10, dtype=torch.float32),
        "b": torch.arange(100, dtype=torch.int64).reshape(10, 10),
        "c": torch.tensor(3.5, dtype=torch.bfloat16),
        "d": torch.zeros(0, 3),
        "e": torch.tensor([True, False, True]),
    }
    checkpoints = Checkpoints(root, keep=1, piece_bytes=64)
    checkpoints.save(1, held, {})
    checkpoints.close()
    memory = fsspec.filesystem("memory")
    commit = read_json(f"{root}/commits/step-000000001.json")
    files = [load(memory.cat_file(f"{root}/{commit['directory']}/{name}")) for name, _, _ in commit["files"]]
    assert [set(file) for file in files] == [{"a@0"}, {"b@0,0"}, {"c@", "d@0,0", "e@0"}]
    for key, tensor in {k: t for file in files for k, t in file.items()}.items():
        assert torch.equal(tensor, held[key[0]]) and tensor.dtype == held[key[0]].dtype
    found = {name: torch.ones_like(tensor) for name, tensor in held.items()}
    again = Checkpoints(root, keep=1)
    assert again.restore(found) is not None
    again.close()
    for name, tensor in held.items():
        assert torch.equal(found[name], tensor)
