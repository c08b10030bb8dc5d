"""What MLflow's pages are told: names, descriptions that people may change, and the preset of charts."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.workflows.runs.made import config_of, tracked
from tests.workflows.training.corpus import write_corpus
from workflows.config import load
from workflows.training.charts import SECTIONS, TAG, view_tags
from workflows.training.notes import NOTE, changed_line, run_name


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "shapes-nano"),
        (["name=mine", "compute.workers=1", "watch.log_every=7"], "shapes-nano"),
        (["name=mine", "optimiser.lr=3e-4"], "shapes-nano optimiser.lr=0.0003"),
        (["model.dims.layers=9"], "shapes-nano model.dims.layers=9"),
        (["data.corpora.0.url=/c", "seed=3"], "shapes-nano seed=3 data.corpora.0.url=/c"),
    ],
)
def test_what_a_run_changed_is_told_against_the_nearest_preset(overrides: list[str], line: str) -> None:
    assert changed_line(load("train", "shapes-nano", overrides)) == line


def test_runs_of_one_config_have_names_of_their_own() -> None:
    config = load("train", "shapes-nano")
    assert run_name(config, "abcdef0123") == "shapes-nano-abcdef"


def test_the_view_unpacks_to_charts_that_stand_in_its_sections() -> None:
    view = json.loads(view_tags()[TAG])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    charts = [c for c in state["compareRunCharts"] if c["type"] == "LINE"]
    assert len({c["uuid"] for c in state["compareRunCharts"]}) == len(state["compareRunCharts"])
    found = {
        name: tuple(c["metricKey"] for c in charts if c["metricSectionId"] == uuid)
        for uuid, name in sections.items()
    }
    assert {name: metrics for name, metrics in found.items() if metrics} == dict(SECTIONS)
    assert len(view_tags()[TAG]) < 5000, "what older servers take as an experiment's tag"


def test_a_description_that_a_person_changed_stays_when_the_run_goes_on(
    client: MlflowClient, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "corpus", shards=1, real=True)
    config = config_of(tmp_path / "corpus", tmp_path / "checkpoints", "notes")
    run_id = tracked(config, {"train/loss": {2: 1.0}})
    number = client.get_run(run_id).info.experiment_id
    experiment = client.get_experiment(number)
    assert f"/experiments/{number}/runs?" in experiment.tags[NOTE]
    client.set_tag(run_id, NOTE, "the one with the odd spike")
    client.set_experiment_tag(number, NOTE, "ours")
    client.set_experiment_tag(number, TAG, "an old view")
    assert tracked(config, {"train/loss": {4: 1.0}}) == run_id
    run, experiment = client.get_run(run_id), client.get_experiment(number)
    assert run.data.tags[NOTE] == "the one with the odd spike"
    assert run.data.tags["oneflow.attempt"] == "2"
    assert experiment.tags[NOTE] == "ours"
    assert experiment.tags[TAG] == view_tags()[TAG]
