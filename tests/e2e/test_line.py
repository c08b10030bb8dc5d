"""The whole line on a very small budget: real S3, real MLflow, real Ray, by the function that `oneflow demo` calls."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.conftest import RunningStack
from tests.reference import shared
from workflows.demo.config import DemoConfig
from workflows.demo.line import DemoReport, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

NAME = "oneflow-e2e"
MODEL = f"models:/{NAME}@champion"
STAGES = ["stack", "corpus", "ingest", "encode", "shard", "train", "register", "evaluate", "show"]
ITEMS = {"t2i_single": 6, "t2i_multi": 2, "caption_single": 6, "caption_multi": 2, "vqa": 4, "story": 1}


def config(root: str, report: Path, cache: Path) -> DemoConfig:
    """The demo's preset with small numbers, a name of its own, and a gate that everything passes."""
    return DemoConfig.model_validate(
        {
            "stack": {
                "preset": "local",
                "ray": {"num_cpus": 2, "object_store_mb": 300},
                "min_free_mb": 0,
            },
            "synth": {"captions": 120, "vqa": 50, "stories": 30, "seed": 3},
            "corpus": {"preset": "shapes", "root": f"{root}/corpus", "shard": {"minimum": 2}},
            "train": {
                "preset": "shapes-nano",
                "model": {"dims": {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 128}},
                "budget": {"steps": 20},
                "data": {"holdout": 0.1, "heldout_packs": 1, "cache_dir": str(cache)},
                "checkpoint": {"url": f"{root}/training", "every_steps": 10},
                "watch": {"log_every": 5, "heldout_every": 10, "sample_every": 20, "sampler_steps": 4},
                "registry": {"name": NAME, "sampler": {"steps": 8}},
                "tracking": {"experiment": NAME},
            },
            "evaluate": {
                "preset": "shapes",
                "items": {**ITEMS, "no_prompt": 1},
                "gate": {"thresholds": [{"metric": "t2i/single/colour", "at_least": 0}], "no_regression": []},
            },
            "report": str(report),
        }
    )


@dataclass(frozen=True)
class Made:
    """What one run of the line left."""

    config: DemoConfig
    report: DemoReport
    figures: dict[str, Any]
    said: list[str]
    seconds: float


@pytest.fixture(scope="module")
def made(ray_stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("line")
    chosen = config(ray_stack.url("e2e"), place / "report", place / "cache")
    said: list[str] = []
    started = time.monotonic()
    report = run(chosen, state_dir=ray_stack.state_dir, say=said.append)
    seconds = time.monotonic() - started
    return Made(chosen, report, json.loads((place / "report" / "report.json").read_text()), said, seconds)


def test_every_stage_is_told_and_timed(made: Made) -> None:
    stages = made.figures["stages"]
    assert [s["name"] for s in stages] == STAGES
    assert all(s["seconds"] >= 0 for s in stages)
    assert sum(s["seconds"] for s in stages) == pytest.approx(made.seconds, rel=0.1, abs=3)
    for number, name in enumerate(STAGES, 1):
        assert any(line.startswith(f"[{number}/9] {name}:") for line in made.said)


def test_the_report_holds_the_contract(made: Made) -> None:
    figures = made.figures
    assert figures["model"] == MODEL
    assert figures["run_id"] == made.report.run_id != ""
    assert figures["corpus_version"] == made.report.corpus_version
    assert re.fullmatch(r"shapes@[0-9a-f]+", figures["corpus_version"])
    assert figures["promoted"] is True
    assert 0 <= figures["metrics"]["t2i/single/colour"] <= 1
    assert figures["gate"] == [
        {
            "metric": "t2i/single/colour",
            "value": figures["metrics"]["t2i/single/colour"],
            "threshold": ">= 0",
            "holds": True,
        }
    ]
    assert figures["peak_memory_bytes"] > 500 << 20


def test_the_page_needs_no_network_and_shows_everything(made: Made) -> None:
    html = made.report.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    for section in ("image", "caption", "answer", "story", "order", "curves", "metrics", "stages"):
        assert f'id="{section}"' in html
    assert html.count("<svg") >= 5
    assert html.count("data:image/png;base64,") >= 16


def test_the_champion_loads_from_the_registry_and_makes_the_same_twice(made: Made) -> None:
    first, second = (OneFlowPipeline.from_pretrained(MODEL) for _ in range(2))
    assert first.identity["name"] == NAME
    assert first.identity["run_id"] == made.report.run_id
    prompts = [Prompt(("a red circle",), "image"), Prompt(("A red circle.",), "document")]
    for a, b in zip(first(prompts, seeds=[1, 2]), second(prompts, seeds=[1, 2]), strict=True):
        assert a.trace == b.trace
        for left, right in zip(a.images, b.images, strict=True):
            assert np.array_equal(np.asarray(left), np.asarray(right))


def test_the_version_carries_its_lineage(made: Made) -> None:
    from mlflow import MlflowClient

    from workflows.lineage.chain import trace

    line = trace(MlflowClient(os.environ["MLFLOW_TRACKING_URI"]), MODEL).to_json()
    assert line["corpus_version"] == made.figures["corpus_version"]
    assert line["run"]["id"] == made.report.run_id
    assert re.fullmatch(r".+@[0-9a-f]{12}", line["codec"])
    assert re.fullmatch(r"[0-9a-f]{64}", line["config_digest"])
    (corpus,) = line["corpora"]
    assert corpus["version"] == made.figures["corpus_version"].split("@")[1]
    assert {i["source"] for i in corpus["inputs"]} == {"captions", "vqa", "stories"}
    assert all(re.fullmatch(r"[0-9a-f]{64}", i["sha256"]) for i in corpus["inputs"])


def test_mlflow_holds_the_run(made: Made) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    data = client.get_run(made.report.run_id).data
    assert [m.step for m in client.get_metric_history(made.report.run_id, "train/loss")] == [5, 10, 15, 20]
    assert data.metrics["t2i/single/colour"] == pytest.approx(made.figures["metrics"]["t2i/single/colour"])
    aliases = dict(client.get_registered_model(NAME).aliases)
    assert {str(v) for v in (aliases["candidate"], aliases["champion"])} == {"1"}


def test_a_second_build_finds_nothing_to_do(made: Made) -> None:
    from workflows.corpus import build

    started = time.monotonic()
    again = build.run(made.config.corpus_config())
    assert not again.made
    assert again.manifest is not None
    assert f"shapes@{again.manifest.version}" == made.figures["corpus_version"]
    assert time.monotonic() - started < 120


def test_a_second_demo_trains_anew(made: Made) -> None:
    from workflows.corpus import build
    from workflows.demo.line import has_ended

    manifest = build.finished(made.config.corpus_config())
    assert manifest is not None
    first, second = (made.config.train_config(manifest.base, seed) for seed in (0, 1))
    assert has_ended(first)
    assert not has_ended(second)


def test_the_line_runs_on_real_pictures_by_more_sources(made: Made, ray_stack: RunningStack) -> None:
    """Emoji, and what img2dataset wrote with its failures, beside the shapes: built, trained on, registered, used."""
    from workflows.corpus import build
    from workflows.corpus.config import CorpusConfig
    from workflows.corpus.inspection import inspect, render
    from workflows.corpus.verify import verify
    from workflows.storage import open_fs
    from workflows.training.train import run as train

    shapes = made.config.corpus_config()
    store, path = open_fs(f"{shapes.root}/raw")
    for name in ("noto_emoji", "img2dataset_output"):
        store.put(f"{shared(name)}/", f"{path}/{name}/", recursive=True)
    raw, some = (
        "${root}/raw",
        {"licence": "Apache-2.0", "limit": 80},
    )  # of a file; there are 100 in three of theirs
    tars, files = (f"{raw}/img2dataset_output/{d}" for d in ("webdataset_jpg256", "files_keep_ratio_png"))
    label = {"caption": "{json.label}"}
    more = [
        {"name": "emoji", "format": "webdataset", "urls": [f"{raw}/noto_emoji/*.tar"], **label, **some},
        {"name": "tars", "format": "webdataset", "urls": [f"{tars}/*.tar"], **some},
        {"name": "files", "format": "folder", "urls": [f"{files}/*"], **some},
    ]
    tree = {**shapes.model_dump(), "name": "real"}
    built = build.run(CorpusConfig.model_validate({**tree, "sources": [*tree["sources"], *more]}))
    assert built.made and built.manifest is not None
    accounts = built.manifest.accounts
    assert {name: account.kept for name, account in accounts.items()} == {
        **{"captions": 120, "vqa": 50, "stories": 30},
        **{"emoji": 80, "tars": 100, "files": 100},
    }
    for name in ("tars", "files"):
        assert accounts[name].refused and {r.split()[0] for r in accounts[name].refused} == {"upstream"}
    assert verify(built.manifest.base, deep=True).samples == 480
    assert "upstream failed" in render(inspect(built.manifest.base))

    config = made.config.train_config(built.manifest.base)
    short = config.budget.model_copy(update={"steps": 6})
    named = config.registry.model_copy(update={"name": "oneflow-real"})
    trained = train(config.model_copy(update={"budget": short, "registry": named}))
    assert trained.step == 6 and trained.model is not None
    pipeline = OneFlowPipeline.from_pretrained(trained.model.uri)
    image = pipeline([Prompt(("lady beetle",), "image")])[0].images[0]
    assert image.size == (64, 64)
    assert isinstance(pipeline([Prompt((image,), "text")])[0].text, str)


def test_serve_is_gone_when_the_evaluation_is_over(made: Made) -> None:
    from workflows.stack.lifecycle import status

    assert status(Path(os.environ["ONEFLOW_HOME"]) / "stack").serve_url is None


def test_generate_uses_the_registered_model(made: Made, tmp_path: Path) -> None:
    from workflows.cli import app

    result = CliRunner().invoke(
        app, ["generate", MODEL, "--prompt", "a red circle", "--out", str(tmp_path / "made"), "--json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["model"]["name"] == NAME
    assert (tmp_path / "made" / "image-0.png").is_file()
    trace = json.loads((tmp_path / "made" / "trace.json").read_text())
    assert trace["trace"]["images"] == [{"segment": 0, "time": 0.0, "step": 0}]
