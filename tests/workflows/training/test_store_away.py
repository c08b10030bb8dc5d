"""The S3 server is killed while a checkpoint is written, and comes back: the save goes through, nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from workflows.errors import OneFlowError
from workflows.stack import StackConfig, connect, down, status, up
from workflows.stack.config import MlflowConfig, RayConfig
from workflows.storage import list_directories, list_urls, put_atomic, read_json
from workflows.store_retries import PATIENCE, RETRIES
from workflows.training.checkpoint import Checkpoints
from workflows.training.commit import Commit
from workflows.training.parallel import Worker
from workflows.training.tensor_files import check

CONFIG = StackConfig(mlflow=MlflowConfig(enabled=False), ray=RayConfig(enabled=False), min_free_mb=0)
AWAY_S = float(os.environ.get("ONEFLOW_TEST_AWAY_S", "3"))


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of this test's own, as it is killed."""
    folder, before = tmp_path_factory.mktemp("store") / "stack", dict(os.environ)
    up(CONFIG, folder)
    connect(folder)
    yield folder
    down(folder, purge=True)
    os.environ.clear()
    os.environ.update(before)


def state(value: float) -> dict[str, torch.Tensor]:
    return {f"layer.{n}": torch.full((1024, 1024), value + n) for n in range(20)}


def kill(folder: Path) -> None:
    pid = status(folder).services["s3"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)


def test_a_store_that_is_away_in_the_middle_of_a_save_loses_no_step(
    alone: Worker, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = "s3://oneflow/run"
    checkpoints = Checkpoints(root, keep=2, max_failed=1, piece_bytes=4 << 20)
    held = state(1.0)
    put_atomic(f"{root}/step-000000009-dead-1/part-00000-00000.safetensors", b"of a killed attempt")
    checkpoints.save(1, held, {"step": 1})
    checkpoints.wait()
    directory = read_json(f"{root}/commits/step-000000001.json")["directory"]
    assert {"attempts", "commits", directory} <= set(list_directories(root))
    assert list_urls(f"{root}/step-000000009-dead-1") == []
    before = RETRIES.counts().total()

    checkpoints.save(2, held, {"step": 2})
    checkpoints.staged()
    for tensor in held.values():
        tensor.add_(1.0)
    deadline = time.monotonic() + 120
    while not list_urls(f"{root}/step-000000002-*/*") and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(store)
    time.sleep(AWAY_S)
    assert checkpoints.saving
    up(CONFIG, store)
    checkpoints.wait()
    assert checkpoints.failed == 0 and RETRIES.counts().total() > before

    checkpoints.save(3, held, {"step": 3})
    checkpoints.close()
    again = Checkpoints(root, keep=2)
    for before_step, step, value in ((3, 2, 1.0), (None, 3, 2.0)):
        found = state(0.0)
        restored = again.restore(found, before_step)
        assert restored is not None and restored.state == {"step": step}
        assert all(torch.equal(found[name], tensor) for name, tensor in state(value).items())
    again.close()

    commit = Commit.from_json(read_json(f"{root}/commits/step-000000003.json"))
    assert check(root, commit, commit.files) is None
    kill(store)
    monkeypatch.setenv(PATIENCE, "0.5")
    with pytest.raises(OneFlowError, match="in 0 s"):
        check(root, commit, commit.files)
