"""`models:/...` out of a real MLflow store: a database and a directory, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oneflow_core.model_source import ModelSourceError
from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.tiny import tiny_parts
from workflows.serving.resolution import parse, resolve


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("models:/shapes@champion", ("shapes", "", "champion")),
        ("models:/shapes/3", ("shapes", "3", "")),
        ("models:/team shapes@a", ("team shapes", "", "a")),
    ],
)
def test_both_forms_are_read(url: str, expected: tuple[str, str, str]) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "models:/",
        "models:/shapes",
        "models:/shapes/latest",
        "models:/@a",
        "models:/a@",
        "models:/a/b@c",
        "s3://x",
    ],
)
def test_other_forms_are_refused(url: str) -> None:
    with pytest.raises(ModelSourceError, match="write models:/NAME@ALIAS"):
        parse(url)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with the registered model `tiny` (version 1, alias `best`) and `other`, which is none of ours."""
    place = tmp_path_factory.mktemp("registry")
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    patch.setenv("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.create_run(client.create_experiment("e", artifact_location=f"file://{place}/artifacts"))
    run_id = run.info.run_id
    client.log_artifacts(run_id, str(OneFlowPipeline(tiny_parts()).save_pretrained(place / "model")), "model")
    client.log_text(run_id, "x", "other/file.txt")
    for name, part in (("tiny", "model"), ("other", "other")):
        client.create_registered_model(name)
        client.create_model_version(name, f"{run.info.artifact_uri}/{part}", run_id)
        client.set_registered_model_alias(name, "best", "1")
    yield run_id
    patch.undo()


@pytest.mark.parametrize("url", ["models:/tiny@best", "models:/tiny/1"])
def test_a_registered_model_makes_what_it_made(registry: str, url: str) -> None:
    pipeline = OneFlowPipeline.from_pretrained(url)
    assert pipeline.identity == {"name": "tiny", "version": "1", "run_id": registry}
    prompt = Prompt(("First there is a circle.",), "document")
    assert pipeline([prompt])[0].trace == OneFlowPipeline(tiny_parts())([prompt])[0].trace


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("models:/tiny@worst", "worst"),
        ("models:/tiny/7", "7"),
        ("models:/nobody@best", "nobody"),
        ("models:/other@best", "no model_index.json"),
    ],
)
def test_what_is_not_there_is_said(registry: str, url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError) as caught:
        resolve(url, tmp_path)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_server_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelSourceError, match="MLFLOW_TRACKING_URI is not set"):
        resolve("models:/tiny@best", tmp_path)
