"""Tracking against a real MLflow: one run by key, increasing steps, and a server that is away for a while."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from workflows.outbox import Outbox
from workflows.tracking import (
    ATTEMPT,
    FAILURE,
    NOTE,
    DatasetRef,
    RunSpec,
    Tracker,
    end_run,
    find_run,
    flat_params,
    run_status,
)

CORPUS = DatasetRef("shapes", "a1b2c3", "s3://corpus/shards/shapes/a1b2c3/manifest.json", {"samples": 12})


def _png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real MLflow server that can be started late."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, _port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.directory}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.directory / "artifacts"), "--serve-artifacts"]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=10)
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError((self.directory / "log").read_text())

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    held = Server(tmp_path_factory.mktemp("mlflow"))
    yield held
    held.stop()


def test_the_run_goes_on_while_the_server_is_away_and_everything_arrives_later(server: Server) -> None:
    params = flat_params({"a": {"b": 1}, "c": "x"})
    spec = RunSpec("shapes", "first", "key-1", params, {"oneflow.corpus": "v1"})
    tracker = Tracker(server.uri, spec, retry_s=0.2)
    begun = time.monotonic()
    for step in (10, 20, 30):
        tracker.metrics({"train/loss": 1.0 / step, "train/text/ce": float(step)}, step)
    tracker.image("samples", _png("red"), 10)
    tracker.json("traces/step-000010.json", {"text": "a red circle"})
    tracker.dataset(CORPUS)
    assert time.monotonic() - begun < 10
    assert tracker.run_id(timeout_s=0.1) is None

    server.start()
    run_id = tracker.run_id(timeout_s=300)
    delivery = tracker.close(timeout_s=300)
    assert (delivery.pending, delivery.dropped, delivery.rejected) == (0, 0, 0)

    client = MlflowClient(server.uri)
    assert run_id is not None
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a.b": "1", "c": "x"}
    assert run.data.tags["oneflow.corpus"] == "v1"
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(10, 0.1), (20, 0.05), (30, 1 / 30)]
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.digest, given.dataset.name) == (CORPUS.version, "shapes")
    assert CORPUS.url in given.dataset.source
    assert [a.path for a in client.list_artifacts(run_id, "traces")] == ["traces/step-000010.json"]
    assert any(a.path.endswith(".png") for a in client.list_artifacts(run_id, "images"))


def test_a_second_attempt_continues_the_run_and_repeats_no_step(server: Server) -> None:
    spec = RunSpec("shapes", "second", "key-2")
    first = Tracker(server.uri, spec)
    for step in (1, 2, 3):
        first.metrics({"train/loss": 1.0}, step)
    first.close("KILLED")

    second = Tracker(server.uri, spec)
    for step in (2, 3, 4):
        second.metrics({"train/loss": 2.0}, step)
    second.metrics({"train/loss": 9.0, "heldout/loss": 3.0}, 4)
    run_id, attempt = second.run_id(), second.attempt()
    second.close()

    assert attempt == 2
    assert run_id == find_run(server.uri, "shapes", "key-2")
    client = MlflowClient(server.uri)
    assert run_id is not None
    assert client.get_run(run_id).data.tags[ATTEMPT] == "2"
    history = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert [m.value for m in client.get_metric_history(run_id, "heldout/loss")] == [3.0]


def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(server: Server) -> None:
    spec = RunSpec("shapes", "third", "key-6")
    away = Tracker("http://127.0.0.1:9", spec, retry_s=0.1)
    for step in (1, 2):
        away.metrics({"train/loss": 1.0 / step}, step)
    kept = json.loads(json.dumps(away.unsent()))
    assert [held["step"] for held in kept] == [1, 2]
    away.close(timeout_s=0.1)

    after = Tracker(server.uri, spec)
    after.resend(kept)
    after.metrics({"train/loss": 3.0}, 3)
    after.resend(kept)
    run_id = after.run_id()
    after.close()
    assert after.unsent() == []
    assert run_id is not None
    history = MlflowClient(server.uri).get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 3.0)]
    assert [m.timestamp for m in history][:2] == [held["time_ms"] for held in kept]


def test_a_failure_is_told_until_the_run_goes_on(server: Server) -> None:
    spec = RunSpec("shapes", "failing", "key-7", tags={NOTE: "What it is about.\n\nMore of it."})
    Tracker(server.uri, spec).close(None)
    run_id = find_run(server.uri, "shapes", "key-7")
    assert run_id is not None and run_status(server.uri, "shapes", "key-7") == "RUNNING"
    client = MlflowClient(server.uri)
    for reason in ("the disk is full; free some", "the loss is nan"):
        end_run(server.uri, "shapes", "key-7", "FAILED", reason)
        failed = client.get_run(run_id)
        assert (failed.info.status, failed.data.tags[FAILURE]) == ("FAILED", reason)
        assert failed.data.tags[NOTE] == f"Failed: {reason}\n\nWhat it is about.\n\nMore of it."

    Tracker(server.uri, RunSpec("shapes", "failing", "key-7")).close()
    again = client.get_run(run_id)
    assert again.info.status == "FINISHED" and FAILURE not in again.data.tags
    assert again.data.tags[NOTE] == "What it is about.\n\nMore of it."
    end_run(server.uri, "shapes", "key-7", "KILLED", "stopped")
    assert client.get_run(run_id).info.status == "KILLED"
    assert FAILURE not in client.get_run(run_id).data.tags
    end_run("http://127.0.0.1:9", "shapes", "key-7", "FAILED", "nobody hears it")
    assert run_status(server.uri, "shapes", "no such key") is None


def test_runs_of_other_keys_and_experiments_stay_apart(server: Server) -> None:
    trackers = [Tracker(server.uri, RunSpec("shapes", "n", key)) for key in ("key-3", "key-4")]
    trackers.append(Tracker(server.uri, RunSpec("emoji", "n", "key-3")))
    assert len({tracker.run_id() for tracker in trackers}) == 3
    for tracker in trackers:
        tracker.close()


def test_an_item_that_the_server_refuses_does_not_hold_up_the_next(server: Server) -> None:
    tracker = Tracker(server.uri, RunSpec("shapes", "n", "key-5"))
    tracker.metrics({"not allowed \\ : *?": 1.0}, 1)
    tracker.metrics({"train/loss": 1.0}, 1)
    run_id = tracker.run_id()
    delivery = tracker.close()
    assert (delivery.rejected, delivery.pending) == (1, 0)
    assert run_id is not None
    assert "train/loss" in MlflowClient(server.uri).get_run(run_id).data.metrics


def test_a_full_outbox_drops_the_oldest_that_may_be_and_counts_it() -> None:
    def connect() -> list[int]:
        if not up:
            raise ConnectionError("away")
        return got

    up: list[bool] = []
    got: list[int] = []
    outbox: Outbox[list[int]] = Outbox(connect, lambda e: False, capacity=5, retry_s=0.05, name="test")
    for i in range(12):
        outbox.put(lambda session, i=i: session.append(i), droppable=i != 1)
    up.append(True)
    delivery = outbox.close(60)
    assert got == [0, 1, 9, 10, 11]
    assert (delivery.sent, delivery.dropped, delivery.pending) == (5, 7, 0)


def test_closing_gives_up_in_time_when_the_receiver_stays_away() -> None:
    def connect() -> None:
        raise ConnectionError("away")

    outbox: Outbox[None] = Outbox(connect, lambda e: True, capacity=5, retry_s=0.05, name="test")
    outbox.put(lambda session: None)
    begun = time.monotonic()
    assert outbox.close(0.3).pending == 1
    assert time.monotonic() - begun < 30


def test_who_has_a_tracker_has_all_of_mlflow(tmp_path: Path) -> None:
    """A run that starts from a registered model reads it while the outbox's thread opens the run."""
    program = (
        "import sys\n"
        "from workflows.tracking import RunSpec, Tracker\n"
        f"tracker = Tracker('sqlite:///{tmp_path}/mlflow.db', RunSpec('e', 'n', 'k', {{}}, {{}}))\n"
        "assert hasattr(sys.modules.get('mlflow'), 'get_registry_uri')\n"
        "import os; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=500)
