"""A sweep on a real Ray: nested runs in MLflow, killed by SIGKILL and started again, one trial stopped, one failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient

from tests.conftest import RunningStack
from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.config import load
from workflows.experiments.sweep import run
from workflows.experiments.trials import plan

STEPS = 60
"""Long enough after the tenth, where a trial is judged, that one which is stopped cannot have come to its end."""


def written(place: Path, stack: RunningStack) -> Path:
    """A sweep of four rates, the third of which learns nothing and the last is too high."""
    write_corpus(place / "corpus")
    base = tiny_config(
        place / "corpus",
        place,
        budget__steps=STEPS,
        checkpoint__url=stack.url("sweep"),
        compute__workers=1,
        watch__heldout_every=10,
        checkpoint__every_steps=10,
        tracking__experiment="sweeps",
    )
    (place / "train.yaml").write_text(yaml.safe_dump(base.model_dump(mode="json")))
    tree: dict[str, Any] = {
        "name": "rates",
        "train": str(place / "train.yaml"),
        "changes": {"optimiser.warmup_steps": 0},
        "space": {"optimiser.lr": {"grid": [1.0e-3, 3.0e-3, 1.0e-9, 1.0e30]}},
        "early": {"grace_steps": 10},
    }
    (place / "sweep.yaml").write_text(yaml.safe_dump(tree))
    return place / "sweep.yaml"


def test_a_killed_sweep_goes_on_and_its_runs_are_nested(ray_stack: RunningStack, tmp_path: Path) -> None:
    config = load("experiment", str(written(tmp_path, ray_stack)))
    first, second, idle, wild = plan(config)
    command = [sys.executable, "-m", "workflows", "experiment", "run", str(tmp_path / "sweep.yaml")]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + 900
        while first.state != "finished" and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert first.state == "finished", (tmp_path / "output").read_text()
    assert second.state == "open"

    said: list[str] = []
    report = run(config, say=said.append)
    assert any("4 trials, 3 of them to run" in line for line in said)
    assert [row.state for row in report.rows] == ["finished", "finished", "stopped", "failed"]
    assert [row.step for row in report.rows[:3]] == [STEPS, STEPS, 10] and idle.progress["step"] < STEPS
    assert "the loss is" in (report.rows[3].failure or "")
    assert report.best and report.best.score == min(row.score for row in report.rows[:2] if row.score)

    client = MlflowClient()
    parent = client.get_run(report.run_id or "")
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {(c.info.run_name or "").rpartition("-")[0] for c in children} == {
        f"rates lr={r}" for r in ("0.001", "0.003", "1e-09", "1e+30")
    }
    status = {c.data.tags["oneflow.run_key"]: c.info.status for c in children}
    assert status == {
        first.run_key: "FINISHED",
        second.run_key: "FINISHED",
        idle.run_key: "KILLED",
        wild.run_key: "FAILED",
    }
    attempts = {c.data.tags["oneflow.run_key"]: c.data.tags["oneflow.attempt"] for c in children}
    assert attempts[first.run_key] == "1"
    for row in report.rows[:2]:
        history = client.get_metric_history(row.run_id or "", "heldout/loss")
        assert [m.step for m in history] == list(range(10, STEPS + 1, 10)) and row.score == history[-1].value
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {"report.html", "sweep.json"}
    assert parent.info.status == "FINISHED" and parent.data.tags["oneflow.attempt"] == "2"
    assert parent.data.metrics["sweep/best"] == report.best.score

    said.clear()
    rates = config.space["optimiser.lr"].model_copy(update={"grid": [1.0e-3, 3.0e-3, 1.0e-9]})
    again = run(config.model_copy(update={"space": {"optimiser.lr": rates}}), say=said.append)
    assert any("3 trials, 0 of them to run" in line for line in said)
    assert again.best == report.best
