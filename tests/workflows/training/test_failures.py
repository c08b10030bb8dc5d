"""What a user is told of a worker's failure, and that what another attempt cannot mend is known as such."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.errors import OneFlowError
from workflows.training.checkpoint import committed_steps
from workflows.training.failures import clear_failure, explained, read_failure, write_failure
from workflows.training.loop import Hooks
from workflows.training.materials import gather
from workflows.training.parallel import Worker
from workflows.training.progress import Progress, ProgressWriter, read_progress
from workflows.training.ray_worker import LASTING
from workflows.training.worker import run_root, work


def test_the_first_failure_that_a_rank_writes_is_told_with_rank_host_cause_and_mend(tmp_path: Path) -> None:
    assert read_failure(str(tmp_path)) is None
    write_failure(str(tmp_path), 3, OneFlowError("step 7", "the loss is nan", "lower optimiser.lr"))
    write_failure(str(tmp_path), 0, ValueError("only a consequence"))
    told = read_failure(str(tmp_path))
    assert (
        str(told)
        == f"training, rank 3 on {socket.gethostname()}: step 7: the loss is nan; lower optimiser.lr"
    )
    clear_failure(str(tmp_path))
    write_failure(str(tmp_path), 1, FileNotFoundError("shard-000002.tar"))
    assert str(read_failure(str(tmp_path))).endswith(
        f"FileNotFoundError: shard-000002.tar; mend it and run the command again; {tmp_path} keeps its checkpoints"
    )


def test_a_worker_that_died_is_told_and_not_its_peer_that_lost_it() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    died = WorkerHealthCheckFailedError("health check failed", failure=ActorDiedError())
    peer = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:29337")
    told = explained(WorkerGroupError("wall of text", {0: peer, 1: died}), "s3://b/run")
    assert told.what == "training, rank 1" and told.cause.startswith("ActorDiedError: ")
    assert told.mend.endswith("it goes on from the last checkpoint below s3://b/run")

    own = OneFlowError("s3://b", "the store is gone", "start it")
    told = explained(WorkerGroupError("wall of text", {0: peer, 1: own}), "s3://b/run")
    assert (told.what, told.cause, told.mend) == (
        "training, rank 1: s3://b",
        "the store is gone",
        "start it",
    )
    assert explained(RuntimeError("no workers at all"), "r").cause == "RuntimeError: no workers at all"


def test_a_node_that_is_about_to_go_is_reason_for_a_checkpoint_once_in_a_while(
    alone: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked after every step here, it says so once: after step 3, at which no checkpoint is due."""
    monkeypatch.setattr("workflows.training.loop.LOOK_S", 0.0)
    write_corpus(tmp_path / "corpus")
    changes = {"budget__steps": 8, "checkpoint__every_steps": 5, "checkpoint__keep": 9}
    config = tiny_config(tmp_path / "corpus", tmp_path / "runs", compute__workers=1, **changes)
    answers = iter([False, False, True, False, False, False, False, False])
    work(config, Hooks(leaving=lambda: next(answers)))
    assert committed_steps(run_root(config, gather(config).run_key)) == [8, 5, 3]


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_shard_that_is_missing_is_no_reason_to_try_again(tmp_path: Path, damage: str) -> None:
    write_corpus(tmp_path / "corpus")
    shard = tmp_path / "corpus" / "shard-000001.tar"
    shard.unlink() if damage == "gone" else shard.write_bytes(shard.read_bytes()[:1000])
    config = tiny_config(tmp_path / "corpus", tmp_path, data__read_ahead=0)
    loader = gather(config).build_loader(config.data, 0, "train", 0, 1)
    with pytest.raises(LASTING, match=r"shard-000001\.tar"):
        for _ in zip(range(100), loader, strict=False):
            pass


def test_progress_holds_nobody_up_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory cannot be made until the file in its place is removed."""
    (tmp_path / "store").write_text("in the way")
    monkeypatch.setattr("workflows.training.progress.POLL_S", 0.05)
    writer = ProgressWriter(str(tmp_path / "store" / "run"))
    for step in (1, 2):
        writer(Progress(step, 9, step / 9, 1.0, 1.0, {"train/loss": 2.0}))
        time.sleep(0.2)
    assert read_progress(str(tmp_path / "store" / "run")) is None
    (tmp_path / "store").unlink()
    writer(Progress(3, 9, 3 / 9, 1.0, 1.0, {"train/loss": 2.0}))
    writer.close(60)
    told = read_progress(str(tmp_path / "store" / "run"))
    assert told is not None and told["step"] == 3
