"""`oneflow runs` over runs in a real MLflow: found by every name, shown, and laid beside each other."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from oneflow_core.data.manifest import Manifest
from oneflow_core.metrics.interval import Estimate
from tests.workflows.runs.made import Logged, config_of, registered, tracked
from tests.workflows.training.corpus import write_corpus
from workflows.cli import app
from workflows.config import load
from workflows.errors import UsageError
from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.report import EvaluationReport
from workflows.training.materials import gather

FAST: Logged = {
    "speed/step_s": {2: 1.0, 4: 1.0, 6: 1.0},
    "speed/tokens_per_s": {2: 100.0, 4: 100.0, 6: 100.0},
    "train/loss": {2: 9.0, 4: 7.0, 6: 6.0},
    "heldout/loss": {2: 9.5, 4: 7.5, 6: 6.5},
}
SLOW: Logged = {
    "speed/step_s": {2: 2.0, 4: 2.0},
    "speed/tokens_per_s": {2: 50.0, 4: 50.0},
    "train/loss": {2: 8.0, 4: 5.0},
    "heldout/loss": {2: 8.5, 4: 5.5},
    "heldout/text/ce": {2: 1.0, 4: float("nan")},
}
Ids = tuple[str, str, str]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("corpora")
    write_corpus(base / "a", shards=1, real=True)
    write_corpus(base / "b", shards=2, real=True)

    for name, data in replace(Manifest.load(str(base / "b")), version="1" * 12).files().items():
        (base / "b" / name).write_bytes(data)
    return base / "a", base / "b"


@pytest.fixture(scope="module")
def runs(client: MlflowClient, corpora: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Ids:
    """Two runs of `tiny` that differ in learning rate, and a running one of `other` on another corpus."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    first = config_of(corpora[0], checkpoints, "tiny")
    ids = tracked(first, FAST), tracked(config_of(corpora[0], checkpoints, "tiny", optimiser__lr=1e-3), SLOW)
    registered(first)
    other = config_of(corpora[1], checkpoints, "other", name="elsewhere")
    return *ids, tracked(other, SLOW, end=False)


def call(*arguments: str, code: int = 0) -> Any:
    """What the command printed: its JSON where it was asked for."""
    done = CliRunner().invoke(app, ["runs", *arguments])
    if code:
        assert isinstance(done.exception, UsageError)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return (
        json.loads(done.stdout.splitlines()[-1], parse_constant=no_number)
        if "--json" in arguments
        else done.stdout
    )


def no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_list_names_runs_of_all_experiments_newest_first(runs: Ids) -> None:
    listed = [r for r in call("list", "--json")["runs"] if r["experiment"] in ("tiny", "other")]
    assert [r["id"] for r in listed] == [*reversed(runs)]
    assert [r["status"] for r in listed] == ["RUNNING", "FINISHED", "FINISHED"]
    assert [r["step"] for r in listed] == [4, 4, 6]
    assert len({r["name"] for r in listed}) == 3
    assert {r["experiment"] for r in call("list", "--experiment", "other", "--json")["runs"]} == {"other"}
    assert "known: Default, lineage, notes, other, tiny" in call("list", "--experiment", "none", code=2)


def test_a_run_is_found_by_id_beginning_name_config_and_key(client: MlflowClient, runs: Ids) -> None:
    info = client.get_run(runs[0])
    key = info.data.tags["oneflow.run_key"]
    for said in (runs[0], runs[0][:10], info.info.run_name, key):
        assert call("show", said, "--json")["id"] == runs[0]
    assert call("show", "tiny", "--json")["id"] == runs[1], "of a config's name the newest counts"
    assert "no run has this id" in call("show", "nothing-of-that-name", code=2)
    assert "names no run" in call("show", "it's", code=2)
    shown = call("show", runs[0], "--json")
    assert shown["versions"] == ["tiny/1"]
    assert shown["environment"]["device"] == "cpu"
    assert shown["corpora"][0]["manifest_sha256"] == gather_digest(shown["corpora"][0]["url"])


def gather_digest(base: str) -> str:
    return str(json.loads((Path(base) / "manifest.json").read_text())["digest"])


def test_the_config_that_is_shown_trains_the_same_run(
    client: MlflowClient, runs: Ids, tmp_path: Path
) -> None:
    text = call("show", runs[1], "--config")
    (tmp_path / "run.yaml").write_text(text)
    again = load("train", str(tmp_path / "run.yaml"))
    assert gather(again).run_key == client.get_run(runs[1]).data.tags["oneflow.run_key"]
    assert yaml.safe_load(text)["optimiser"]["lr"] == 1e-3


def test_compare_tells_what_differs_and_nothing_else(runs: Ids) -> None:
    found = call("compare", runs[0], runs[1], "--json")
    assert found["config"] == {"optimiser.lr": [3e-3, 1e-3]}
    assert (found["data"], found["environment"], found["diffs"]) == ({}, {}, [])
    assert found["results"]["best heldout/loss"] == [6.5, 5.5]
    assert found["results"]["tokens/s"] == pytest.approx([100.0, 50.0])
    assert found["equal"]["step"]["at"] == 4.0
    assert found["equal"]["step"]["values"]["heldout/loss"] == [7.5, 5.5]
    assert found["equal"]["tokens"]["at"] == 400.0
    assert found["equal"]["tokens"]["values"]["heldout/loss"] == [7.5, 5.5]
    # Both trained for as long; the faster one's last value counts, not the one of the same step.
    assert found["equal"]["seconds"]["at"] == 6.0
    assert found["equal"]["seconds"]["values"]["heldout/loss"] == [6.5, 8.5]
    assert found["equal"]["step"]["values"]["heldout/text/ce"] == [None, 1.0], "what is no number is left out"
    assert not [w for w in found["warnings"] if "held-out" in w]


def test_compare_across_experiments_warns_and_names_the_corpora(
    runs: Ids, corpora: tuple[Path, Path]
) -> None:
    found = call("compare", runs[0], "elsewhere", "--json")
    (row,) = found["data"].values()
    assert [c["version"] for c in row] == ["0" * 12, "1" * 12]
    assert [c["samples"] for c in row] == [60, 120]
    assert found["diffs"] == [f"oneflow corpus diff {corpora[0]} {corpora[1]}"]
    assert any("elsewhere" in w and "still running" in w for w in found["warnings"])
    assert any(w.startswith("held-out losses are of other") for w in found["warnings"])
    printed = call("compare", runs[0], "elsewhere")
    assert f"oneflow corpus diff {corpora[0]} {corpora[1]}" in printed


def test_the_page_draws_every_run_in_every_chart_and_needs_no_network(runs: Ids, tmp_path: Path) -> None:
    call("compare", *runs, "--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "src=" not in page and "href=" not in page
    drawings = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawings) == 3 * 3
    drawn = [sum(str(e.get("class")).startswith("line hue") for e in drawing.iter()) for drawing in drawings]
    assert drawn == 3 * [3, 2, 3], "heldout/text/ce was logged by two of them"
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [r["id"] for r in data["runs"]] == list(runs)


def test_evaluations_stand_beside_each_other(client: MlflowClient, runs: Ids) -> None:
    for run_id, value, digest in ((runs[0], 0.5, "items"), (runs[1], 0.75, "others")):
        figures = {"colour": Figure(Estimate(value, value, value, 4))}
        report = EvaluationReport("shapes", digest, {}, figures, Judged((), (), (), ()), 1.0)
        client.log_dict(run_id, report.to_json(), "evaluation/shapes/metrics.json")
    found = call("compare", runs[0], runs[1], "--json")
    assert found["evaluations"] == {"shapes: colour": [0.5, 0.75]}
    assert "evaluation shapes: the runs were asked different items" in found["warnings"]


def test_one_run_is_compared_with_nothing(runs: Ids) -> None:
    assert "one run has nothing to differ from" in call("compare", runs[0], code=2)
    assert "one and the same" in call("compare", runs[0], runs[0][:12], code=2)
