"""One model against another: stored or measured now, paired by item, in files, in MLflow and in the verdict."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from oneflow_core.metrics.interval import Estimate
from workflows.cli import app
from workflows.config import load
from workflows.errors import OneFlowError, UsageError
from workflows.evaluation.comparison import Comparison, compare, plot
from workflows.evaluation.config import CompareConfig, EvaluateConfig
from workflows.evaluation.figures import Figure
from workflows.evaluation.opponent import find
from workflows.evaluation.run import run
from workflows.evaluation.scores import Score, Scores, pairs_of

from .oracle import deployment

SMALL = [f"items.{name}=4" for name in ("t2i_multi", "caption_multi", "vqa", "story", "no_prompt")]
SMALL += ["items.t2i_single=20", "items.caption_single=20", "gate=null", "compare.figures=[]"]
EVEN = Figure(Estimate(0.5, 0, 1, 4))


def nothing_else(model: str) -> Scores:
    raise AssertionError(f"{model} is measured already")


def config(*overrides: str) -> EvaluateConfig:
    loaded: EvaluateConfig = load("evaluate", "shapes", [*SMALL, *overrides])
    return loaded


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    place = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        patch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{place}/mlflow.db")
        client = MlflowClient(f"sqlite:///{place}/mlflow.db")
        client.create_experiment("oneflow-evaluation", artifact_location=str(place / "artifacts"))
        client.create_experiment("training", artifact_location=str(place / "artifacts"))
        yield client


def version(client: MlflowClient, name: str) -> tuple[str, str]:
    if not [m for m in client.search_registered_models() if m.name == name]:
        client.create_registered_model(name)
    experiment = client.get_experiment_by_name("training").experiment_id
    run_id = client.create_run(experiment).info.run_id
    return str(client.create_model_version(name, "/nowhere", run_id).version), run_id


def scores_of(
    values: Mapping[str, float], better: str = "higher", version: str = "1", **parts: Any
) -> Scores:
    found = {k: (v,) for k, v in values.items()}
    score = Score(float(np.mean(list(values.values()))), better, found)  # type: ignore[arg-type]
    return Scores("made", "d", {"name": "m", "version": version}, {"figure": score, **parts})


def compared(ours: Scores, theirs: Scores, **figures: Figure) -> Comparison:
    return compare(ours, theirs, {"figure": EVEN, **figures}, {}, CompareConfig())


def test_two_versions_in_mlflow_are_paired_item_by_item(store: MlflowClient, tmp_path: Path) -> None:
    old, old_run = version(store, "pair")
    with deployment("pair", old, old_run, skill=0.5) as server:
        theirs = run(config(), f"models:/pair/{old}", url=server.url, out=tmp_path / "old")
    store.set_registered_model_alias("pair", "champion", old)
    new, new_run = version(store, "pair")
    with deployment("pair", new, new_run) as server:
        report = run(
            config(), f"models:/pair/{new}", url=server.url, out=tmp_path / "new", against="@champion"
        )
        before = len(server.bodies)
        with pytest.raises(UsageError, match="asked other items"):
            run(config("seed=1"), f"models:/pair/{new}", url=server.url, against=str(tmp_path / "old"))
        assert len(server.bodies) == before, "nothing is asked in vain"
    wanted = Scores.of(theirs).to_json()
    for against in (f"models:/pair/{old}", old_run, f"runs:/{old_run}", str(tmp_path / "old")):
        assert find(against, report, store, nothing_else).to_json() == wanted
    with pytest.raises(UsageError, match="it is the model itself"):
        find(f"models:/pair/{new}", report, store, nothing_else)
    with pytest.raises(OneFlowError, match="no scores of shapes on these items"):
        find(old_run, replace(report, digest="other"), store, nothing_else)
    told = json.loads(json.dumps(report.to_json()["comparison"]))
    assert told["against"]["version"] == old

    exact = "caption/single/exact"
    rows = zip(report.judged.items, report.judged.scores, theirs.judged.scores, strict=True)
    gained: dict[str, float] = {}
    for item, mine, other in rows:
        if item.task == "caption/single" and item.split == "heldout_random" and not item.control:
            gained[item.scene] = gained.get(item.scene, 0) + mine["exact"] - other["exact"]
    row = told["figures"][exact]
    scenes = sum(gain != 0 for gain in gained.values())
    assert min(gained.values()) >= 0 and scenes > 5, (
        "where all signs are equal, two patterns of 2^scenes are as far out"
    )
    assert row["difference"] == pytest.approx(sum(gained.values()) / 20) and row["count"] == 20
    assert row["p"] == pytest.approx(2 / 2**scenes) and "exact" in row["test"]
    testable = [r for r in told["figures"].values() if not r["said"].startswith("not testable")]
    assert told["correction"] == f"Holm over {len(testable)} figures" and len(testable) > 40
    assert row["p_holm"] >= row["p"] and told["figures"]["text/length_ratio"]["test"] == "paired bootstrap"

    paths = {f.path for f in store.list_artifacts(new_run, "evaluation/shapes")}
    stem = f"evaluation/shapes/comparison-pair-{old}"
    assert {f"{stem}.json", f"{stem}.png", "evaluation/shapes/scores.json"} <= paths
    assert json.loads((tmp_path / "new" / f"comparison-pair-{old}.json").read_text()) == told


def test_the_command_prints_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sets = [
        part
        for override in [*SMALL, "compare.figures=[caption/exact, vqa/accuracy]"]
        for part in ("--set", override)
    ]
    outputs = []
    for name, skill, more in (("a", 0.2, []), ("b", 1.0, ["--against", str(tmp_path / "a")])):
        with deployment(name, "1", skill=skill) as server:
            arguments = [
                "evaluate",
                name,
                "--url",
                server.url,
                "--out",
                str(tmp_path / name),
                *sets,
                "--json",
                *more,
            ]
            done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        outputs.append(done.stdout)
    lines = outputs[1].splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith("against a version 1, Holm over 2 figures")
    )
    assert re.split(r" {2,}", lines[start + 1])[3:] == ["difference", "95 % interval", "p", "p (Holm)"]
    assert lines[start + 2].startswith("caption/exact") and lines[start + 2].endswith("better")
    assert set(json.loads(lines[-1])["comparison"]["figures"]) == {"caption/exact", "vqa/accuracy"}
    with deployment("b", "1") as server:
        done = CliRunner().invoke(
            app, ["evaluate", "b", "--url", server.url, "--against", "@champion", *sets]
        )
    assert isinstance(done.exception, UsageError) and "no registered model" in str(done.exception)


def test_less_is_better_where_the_figure_says_so() -> None:
    low, high = ({str(i): value + i / 100 for i in range(30)} for value in (1.0, 2.0))
    lower = Figure(Estimate(0, 0, 0, 0), better="lower")
    found = compared(scores_of(low, "lower"), scores_of(high, "lower", "2"), figure=lower)
    assert found.rows[0].said(0.05) == "better" and found.rows[0].difference.value == pytest.approx(-1)
    assert compared(scores_of(high), scores_of(low, version="2")).rows[0].said(0.05) == "better"
    assert Image.open(io.BytesIO(plot(found))).width > 300


@pytest.mark.parametrize(
    ("theirs", "figure", "reason"),
    [
        (scores_of({"a": 1.0}), None, "only one of the two has it"),
        (scores_of({"x": 1.0}), EVEN, "no items in common"),
        (Scores("made", "d", {}, {"figure": Score(0.5, "higher", {})}), EVEN, "no items give a score"),
        (Scores("made", "d", {}, {"figure": Score(0.9, "higher", {"a": (0.5,)})}), EVEN, "do not add up"),
        (Scores("made", "d", {}, {"figure": Score(0.5, "higher", {"a": (0.5, 1.0)})}), EVEN, "not those of"),
    ],
)
def test_what_cannot_be_tested_is_said(theirs: Scores, figure: Figure | None, reason: str) -> None:
    found = pairs_of("figure", figure, scores_of({"a": 1.0, "b": 0.0}), theirs, {})
    assert isinstance(found, str) and reason in found
    if figure:
        row = compared(scores_of({"a": 1.0, "b": 0.0}), theirs).rows[0]
        assert row.said(0.05).startswith("not testable: ") and np.isnan(row.p_holm)


def test_scores_come_back_as_they_were_stored() -> None:
    found = scores_of({"a": 1.0, "b": 0.25}, nothing=Score(float("nan"), "lower", {}))
    back = Scores.from_json(json.loads(json.dumps(found.to_json())))
    assert back.to_json() == found.to_json() and np.isnan(back.figures["nothing"].value)


def test_a_directory_without_scores_is_taken_for_a_model(tmp_path: Path) -> None:
    asked: list[str] = []

    def evaluate(model: str) -> Scores:
        asked.append(model)
        return scores_of({"a": 1.0})

    class Report:
        model, suite, digest = {"name": "m", "version": "x"}, "made", "d"

    find(str(tmp_path), Report(), None, evaluate)  # type: ignore[arg-type]
    assert asked == [str(tmp_path)]
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(UsageError, match="no scores of an evaluation"):
        find(str(tmp_path), Report(), None, evaluate)  # type: ignore[arg-type]
