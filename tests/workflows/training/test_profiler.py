"""A trace of chosen steps of a real run, read back."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import ValidationError

from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.tracking import RunSpec, Tracker
from workflows.training.config import ProfileSettings
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.parallel import Worker


def test_the_trace_holds_the_steps_asked_for(alone: Worker, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    config = tiny_config(
        tmp_path / "corpus",
        tmp_path / "runs",
        budget__steps=6,
        compute__workers=1,
        watch__profile={"start": 2, "stop": 4, "shapes": True},
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).create_experiment("tiny", artifact_location=str(tmp_path / "artifacts"))
    tracker = Tracker(uri, RunSpec("tiny", "tiny", "key"))
    root = str(tmp_path / "runs" / "root")
    Trainer(config, gather(config), alone, root, tracker).run()
    run_id = tracker.run_id()
    assert run_id and tracker.close().pending == 0

    name = "steps-2-4-rank-0"
    trace = json.loads(gzip.decompress((Path(root) / "profiles" / f"{name}.json.gz").read_bytes()))
    counts = Counter(event.get("name") for event in trace["traceEvents"] if event.get("ph") == "X")
    steps, packs = 3, 2
    assert counts["data"] == counts["agree"] == counts["optimiser"] == steps
    assert counts["forward"] == counts["backward"] == steps * packs
    table = (tmp_path / "artifacts" / run_id / "artifacts" / "profiles" / f"{name}.txt").read_text()
    assert f"{root}/profiles/{name}.json.gz" in table and "aten::mm" in table
    assert not list((Path(root) / "profiles").glob("*rank-1*"))


def test_steps_stand_in_their_order() -> None:
    with pytest.raises(ValidationError, match="stop 3 must not be below start 5"):
        ProfileSettings(start=5, stop=3)
