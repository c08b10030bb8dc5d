"""`oneflow models lineage`: from a version back to files on a disk, and what it says when a link is broken."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from oneflow_core.pipeline import OneFlowPipeline
from tests.workflows.runs.made import config_of, corpus_with_sources, registered, tracked
from workflows.cli import app
from workflows.config import digest
from workflows.errors import Refused
from workflows.revision import ROOT, git_commit
from workflows.training.config import TrainConfig
from workflows.training.register import Registered

FILES = 7


class Made:
    """A model of stage 2 that starts from one of stage 1, each with a corpus of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.first, self.parent = self._trained("one", 0, {})
        uri = f"models:/lineage/{self.parent.version}"
        weights = (
            MlflowClient().get_model_version("lineage", self.parent.version).tags["oneflow.model_sha256"]
        )
        tags = {"oneflow.parent_model": uri, "oneflow.parent_weights_sha256": weights}
        self.second, self.child = self._trained("two", 1, tags)

    def _trained(self, name: str, seed: int, tags: dict[str, str]) -> tuple[TrainConfig, Registered]:
        corpus = self.base / name
        corpus_with_sources(corpus, self.base / f"{name}-raw", FILES)
        config = config_of(corpus, self.base / "checkpoints", "lineage", name=name, seed=seed)
        tracked(config, {"heldout/loss": {12: 1.25}}, tags)
        return config, registered(config)


@pytest.fixture(scope="module")
def made(client: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("lineage"))


def call(*options: str, model: str = "models:/lineage@candidate") -> Any:
    done = CliRunner().invoke(app, ["models", "lineage", model, *options, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def broken() -> str:
    """What --verify refuses the newest model with."""
    done = CliRunner().invoke(app, ["models", "lineage", "models:/lineage@candidate", "--verify"])
    assert isinstance(done.exception, Refused), done.output
    assert done.exception.exit_code == 3
    return str(done.exception)


@contextmanager
def away(path: Path) -> Iterator[None]:
    """`path` under another name for a while."""
    hidden = path.rename(path.with_name(f"{path.name}.away"))
    yield
    if path.is_dir():
        shutil.rmtree(path)
    hidden.replace(path)


def test_a_version_is_tagged_with_all_that_it_was_made_from(client: MlflowClient, made: Made) -> None:
    version = client.get_model_version("lineage", made.parent.version)
    tags, manifest = version.tags, json.loads((made.base / "one" / "manifest.json").read_text())
    assert tags["oneflow.git_commit"] == git_commit()
    assert (
        tags["oneflow.lock_sha256"] == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    )
    assert tags["oneflow.config_digest"] == digest(made.first)
    assert (tags["oneflow.codec"], tags["oneflow.encoder"]) == (manifest["codec"], manifest["encoder"])
    assert (tags["oneflow.steps"], tags["oneflow.heldout_loss"]) == ("12", "1.2500")
    assert tags["oneflow.objective"] == "oneflow"
    (corpus,) = json.loads(tags["oneflow.corpora"])
    assert corpus["manifest_sha256"] == manifest["digest"]
    assert "oneflow.parent_model" not in tags
    pipeline = OneFlowPipeline.from_pretrained(
        made.parent.uri.replace("@candidate", f"/{made.parent.version}")
    )
    assert tags["oneflow.parameters"] == str(sum(p.numel() for p in pipeline.parts.model.parameters()))
    for command in ("oneflow evaluate", "oneflow serve", "oneflow runs show", "git checkout"):
        assert command in version.description
    assert "models:/lineage@champion" in client.get_registered_model("lineage").description
    run = client.get_run(version.run_id)
    assert "oneflow train run.yaml" in run.data.tags["mlflow.note.content"]
    assert re.fullmatch(r"one-[0-9a-f]{6}", run.info.run_name)


def test_the_way_back_leads_to_the_bytes_of_every_source_file(made: Made, tmp_path: Path) -> None:
    line = call("--files", "--out", str(tmp_path / "files.jsonl"), "--html", str(tmp_path / "tree.html"))
    for node, name in ((line, "two"), (line["parent"], "one")):
        (corpus,) = node["corpora"]
        assert corpus["sources"] == [{"source": "raw", "files": FILES, "bytes": 11 * FILES}]
        for entry in corpus["inputs"]:
            assert hashlib.sha256(Path(entry["url"]).read_bytes()).hexdigest() == entry["sha256"]
        assert node["run"]["name"].startswith(f"{name}-")
    assert line["parent"]["parent"] is None
    rows = [json.loads(row) for row in (tmp_path / "files.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * FILES
    assert {row["model"] for row in rows} == {line["uri"], line["parent"]["uri"]}
    page = (tmp_path / "tree.html").read_text()
    assert "src=" not in page and page.count(">run<") == 2 and page.count(">corpus<") == 2
    few = call()["corpora"][0]
    assert (len(few["inputs"]), few["sources"][0]["files"]) == (3, FILES)


def test_verify_holds_where_nothing_was_touched_and_where_a_file_was_copied_back(made: Made) -> None:
    path = made.base / "one-raw" / "part-3.txt"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    checks = call("--verify")["checks"]
    assert all(check["ok"] for check in checks)
    told = " ".join(check["link"] for check in checks)
    for link in (
        "weights of",
        "config of two",
        "config of one",
        "corpus tiny",
        "shards",
        "files of raw",
        "starts from",
    ):
        assert link in told


def test_a_corpus_that_is_gone_is_told_and_refused(made: Made) -> None:
    with away(made.base / "one"):
        line = call()
        assert line["parent"]["corpora"][0]["gone"] and not line["corpora"][0]["gone"]
        assert "corpus tiny@000000000000: gone" in broken()


def test_a_source_file_that_is_gone_or_changed_is_told(made: Made) -> None:
    path = made.base / "two-raw" / "part-0.txt"
    with away(path):
        assert "files of raw: 6 the same, 1 gone" in broken().replace(
            "1 gone, 6 the same", "6 the same, 1 gone"
        )
        path.write_text("document X\n")
        assert "1 changed" in broken()


def test_a_corpus_that_was_built_again_is_not_the_one_that_was_read(made: Made) -> None:
    with away(made.base / "one"), away(made.base / "one-raw"):
        corpus_with_sources(made.base / "one", made.base / "one-raw", FILES - 1)
        assert "it was built again" in broken()


def test_weights_that_were_changed_are_told(client: MlflowClient, made: Made) -> None:
    source = client.get_model_version("lineage", made.parent.version).source
    held = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    path = Path(held.removeprefix("file://")) / "model" / "model.safetensors"
    before = path.read_bytes()
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, path)
    assert f"weights of models:/lineage/{made.parent.version}: sha256" in broken()
    path.write_bytes(before)


def test_a_run_that_was_deleted_is_told(client: MlflowClient, made: Made) -> None:
    run_id = client.get_model_version("lineage", made.parent.version).run_id
    client.delete_run(run_id)
    assert call()["parent"]["run"]["gone"] == "marked as deleted"
    assert "marked as deleted" in broken()
    client.restore_run(run_id)


def test_a_parent_outside_the_registry_tells_what_its_index_knows(made: Made, tmp_path: Path) -> None:
    outside = tmp_path / "stage-1"
    OneFlowPipeline.from_pretrained(f"models:/lineage/{made.parent.version}").save_pretrained(outside)
    index = json.loads((outside / "model_index.json").read_text())
    tags = {"oneflow.parent_model": str(outside), "oneflow.parent_weights_sha256": index["model_sha256"]}
    config = config_of(made.base / "two", made.base / "checkpoints", "lineage", name="three", seed=2)
    config = config.model_copy(
        update={"registry": config.registry.model_copy(update={"name": "outside", "alias": "newest"})}
    )
    tracked(config, {"heldout/loss": {12: 1.25}}, tags)
    registered(config)
    line = call("--verify", model="models:/outside@newest")
    parent = line["parent"]
    assert (parent["uri"], parent["codec"]) == (str(outside), index["latent_codec_id"])
    assert parent["corpus_version"] == index["notes"]["corpus_version"] == "tiny@000000000000"
    assert all(check["ok"] for check in line["checks"])
    shutil.rmtree(outside)
    assert call(model="models:/outside@newest")["parent"]["gone"]
