"""Evaluation from the deployment to the registry, with a real MLflow store."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from workflows.config import load
from workflows.errors import OneFlowError, UsageError
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.run import run

from .oracle import deployment

SMALL = [f"items.{name}=4" for name in ("t2i_multi", "caption_multi", "vqa", "story", "no_prompt")]
SMALL += ["items.t2i_single=8", "items.caption_single=8"]
WIDE = ["gate.thresholds=[{metric: t2i/single/colour, at_least: 0.3}]", "gate.tolerance=0.01"]


def _config(*overrides: str) -> EvaluateConfig:
    config: EvaluateConfig = load("evaluate", "shapes", [*SMALL, *overrides])
    return config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MlflowClient, str]]:
    """A client of a fresh store, and the id of an experiment in it."""
    place = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        patch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{place}/mlflow.db")
        client = MlflowClient(f"sqlite:///{place}/mlflow.db")
        yield client, client.create_experiment("training", artifact_location=str(place / "artifacts"))


def _version(store: tuple[MlflowClient, str], name: str) -> tuple[str, str]:
    client, experiment = store
    if not [m for m in client.search_registered_models() if m.name == name]:
        client.create_registered_model(name)
    run_id = client.create_run(experiment).info.run_id
    return str(client.create_model_version(name, "/nowhere", run_id).version), run_id


def test_without_mlflow_files_and_figures_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines: list[str] = []
    with deployment() as server:
        server.inner = {0: (422, "no")}
        report = run(_config(), "oracle", url=server.url, out=tmp_path, say=lines.append)
    assert report.failed == 1 and report.run_id == "" and not report.promoted and lines
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(rows) == len(report.judged.items)
    assert [row["error"] for row in rows if row["error"]] == ["HTTP 422: no"]
    named = [part["image"] for row in rows for part in row["prompt"] + row["output"] if "image" in part]
    assert named and all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in named)
    assert (tmp_path / "sheets" / "t2i-single-heldout_pair.png").exists()
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (
        written == json.loads(json.dumps(report.to_json()))
        and written["metrics"]["caption/exact/heldout_pair"] == 1
    )
    assert written["figures"]["caption/exact"]["controls"].keys() == {"chance", "shuffled", "no_prompt"}


def test_a_good_version_becomes_champion_and_a_worse_one_does_not(store: tuple[MlflowClient, str]) -> None:
    client, _ = store
    version, run_id = _version(store, "shapes")
    with deployment("shapes", version, run_id) as server:
        report = run(_config(*WIDE), f"models:/shapes/{version}", url=server.url)
    assert report.promoted and report.run_id == run_id
    assert str(client.get_model_version_by_alias("shapes", "champion").version) == version
    data = client.get_run(run_id).data
    assert data.metrics["t2i/single/colour"] == 1 and data.metrics["shapes/failed"] == 0
    stored = {f.path for f in client.list_artifacts(run_id, "evaluation/shapes")}
    assert {
        f"evaluation/shapes/{n}" for n in ("items.jsonl", "metrics.json", "images.zip", "sheets")
    } <= stored
    tags = client.get_model_version("shapes", version).tags
    assert tags["gate.shapes"] == "passed" and "no champion yet" in tags["gate.shapes.why"]

    worse, run_id = _version(store, "shapes")
    bare = "gate.thresholds=[{metric: t2i/single/colour, at_least: 0}]"
    with deployment("shapes", worse, run_id, skill=0.2) as server:
        report = run(_config(*WIDE, bare), f"models:/shapes/{worse}", url=server.url)
    assert report.verdict is not None and not report.verdict.passed and not report.promoted
    assert f"champion 1.000 of version {version}" in report.verdict.why
    assert "Holm over 3, alpha 0.05" in report.verdict.why
    assert str(client.get_model_version_by_alias("shapes", "champion").version) == version
    tags = client.get_model_version("shapes", worse).tags
    assert tags["gate.shapes"] == "refused" and "caption/exact" in tags["gate.shapes.why"]


def test_a_champion_of_other_items_is_noted(store: tuple[MlflowClient, str]) -> None:
    client, _ = store
    for skill, seed in ((1.0, 0), (0.9, 1)):
        version, run_id = _version(store, "other")
        with deployment("other", version, run_id, skill=skill) as server:
            report = run(_config(*WIDE, f"seed={seed}"), f"models:/other/{version}", url=server.url)
        assert report.promoted
    assert report.verdict is not None and "was not measured on these items" in report.verdict.why


def test_figures_never_land_at_another_model(store: tuple[MlflowClient, str]) -> None:
    version, run_id = _version(store, "mine")
    with deployment("theirs", version, run_id) as server, pytest.raises(UsageError, match="it serves theirs"):
        run(_config(), f"models:/mine/{version}", url=server.url)


def test_a_model_whose_run_is_on_another_server_gets_a_run_here(
    store: tuple[MlflowClient, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exported model, or the one in the package, names the run that trained it, wherever that was."""
    monkeypatch.chdir(tmp_path)
    elsewhere = "0123456789abcdef0123456789abcdef"
    with deployment("oracle", "8e17e8fa53a3", elsewhere) as server:
        report = run(_config("gate=null"), "oracle", url=server.url)
    assert report.run_id not in ("", elsewhere)
    here = store[0].get_run(report.run_id)
    assert here.info.status == "FINISHED" and "t2i/single/colour" in here.data.metrics


def test_an_alias_names_the_version_that_must_be_served(store: tuple[MlflowClient, str]) -> None:
    version, run_id = _version(store, "aliased")
    store[0].set_registered_model_alias("aliased", "candidate", version)
    with deployment("aliased", version, run_id) as server:
        assert run(_config("gate=null"), "models:/aliased@candidate", url=server.url).verdict is None
        with pytest.raises(UsageError, match="no version holds that alias"):
            run(_config(), "models:/aliased@absent", url=server.url)


def test_a_tracking_server_that_is_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with deployment() as server, pytest.raises(OneFlowError, match="MLflow"):
        run(_config(), "oracle", url=server.url)


def test_nothing_but_failures_is_an_error(store: tuple[MlflowClient, str]) -> None:
    with deployment() as server, pytest.raises(OneFlowError, match="all .* items"):
        server.troubles = [(422, b"no")] * 1000
        run(_config(), "oracle", url=server.url)


def test_the_command_exits_with_3_when_refused(
    store: tuple[MlflowClient, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from workflows.cli import main

    sets = [part for override in SMALL for part in ("--set", override)]
    with deployment(skill=0.2) as server:
        arguments = ["evaluate", "oracle", "--url", server.url, "--out", str(tmp_path), "--json", *sets]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 3
        captured = capsys.readouterr()
        assert captured.err.splitlines()[-1].startswith("Refused: model oracle: ")
        result = json.loads(captured.out.splitlines()[-1])
        assert result["verdict"]["passed"] is False and result["metrics"]["t2i/single/colour"] < 0.9
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--no-gate"])
        assert ended.value.code == 0
