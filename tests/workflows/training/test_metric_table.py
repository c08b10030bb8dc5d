"""The table of metrics in the documentation: everything that real runs log is in it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.training.exporter import GAUGES, OF_A_WORKER, OF_THE_RUN
from workflows.training.loop import Trainer
from workflows.training.materials import gather
from workflows.training.parallel import Worker, whole
from workflows.training.worker import open_tracker

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([a-z_]+/[^`]+)` \|", re.MULTILINE)


def patterns() -> tuple[set[str], set[str]]:
    """Names in the table, and those of them that only a GPU has; `<...>` stands for anything but a slash."""
    page = PAGE.read_text()
    of_a_gpu = page.partition("| metric (GPU) |")[2].partition("\n\n")[0]
    return set(ROW.findall(page)), set(ROW.findall(of_a_gpu))


def matches(pattern: str, name: str) -> bool:
    parts = re.split(r"<[a-z]+>", pattern)
    return re.fullmatch("[^/]+".join(re.escape(part) for part in parts), name) is not None


def logged(alone: Worker, corpus: Path, directory: Path, **changes: object) -> set[str]:
    """Metric names in a real MLflow after a short run."""
    uri = f"sqlite:///{directory}/mlflow.db"
    settings = {
        "tracking__uri": uri,
        "watch__captions": 1,
        "watch__length_captions": 3,
        "watch__sampler_steps": 4,
        "checkpoint__every_steps": 1,
    }
    settings |= {"watch__prompts": ["a red thing"], "registry__codec": str(corpus / "codec")}
    config = tiny_config(corpus, directory / "runs", **{**settings, **changes})
    directory.mkdir()
    MlflowClient(uri).create_experiment("oneflow", artifact_location=str(directory / "artifacts"))
    materials = gather(config)
    tracker = open_tracker(config, materials, materials.run_key)
    assert tracker
    Trainer(config, materials, alone, str(directory / "run"), tracker).run()
    run_id = tracker.run_id()
    assert run_id and not tracker.close().rejected
    run = MlflowClient(uri).get_run(run_id)
    kept = {artifact.path for artifact in MlflowClient(uri).list_artifacts(run_id, "calibration")}
    assert kept == {"calibration/step-000000004.json"}
    return set(run.data.metrics)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(base, real=True)
    return base


def test_the_table_has_what_runs_log_and_nothing_else(alone: Worker, corpus: Path, tmp_path: Path) -> None:
    table, of_a_gpu = patterns()
    adaptive = {"objective__schedule": "adaptive", "objective__adaptive_every": 3, "budget__steps": 4}
    names = logged(alone, corpus, tmp_path / "gated", **adaptive)
    free = {"model__dims__counts": "free", "budget__steps": 4, "watch__prompts": []}
    names |= logged(alone, corpus, tmp_path / "free", **free)
    assert not {name for name in names if not any(matches(p, name) for p in table)}, "not in the table"
    unused = {p for p in table if not any(matches(p, name) for name in names)}
    assert unused <= of_a_gpu, "in the table and logged by nothing"
    shown = {source.metric for source in (*OF_THE_RUN, *OF_A_WORKER)}
    assert not {m for m in shown if not any(matches(p, m) for p in table)}, "exported and not in the table"
    assert {source.gauge for source in (*OF_THE_RUN, *OF_A_WORKER)} <= set(GAUGES)


def told(alone: Worker, corpus: Path, directory: Path, **changes: object) -> set[str]:
    """Metric names of a run of two steps without MLflow."""
    settings: dict[str, object] = {"watch__length_captions": 2, "watch__sampler_steps": 2, "budget__steps": 2}
    config = tiny_config(corpus, directory / "runs", **settings, **changes)
    return set(Trainer(config, gather(config), alone, str(directory / "run")).run().metrics)


def test_without_detail_the_groups_that_say_so_are_left_out(
    alone: Worker, corpus: Path, tmp_path: Path
) -> None:
    names = told(alone, corpus, tmp_path, watch__detail="basic")
    always = {"train", "heldout", "speed", "data", "goodput", "guard", "checkpoint"}
    assert {name.partition("/")[0] for name in names} == always
    assert "speed/mfu" not in names


@pytest.mark.parametrize("kind", ["transfusion", "masked"])
def test_baselines_tell_what_makes_sense_for_them(
    alone: Worker, corpus: Path, tmp_path: Path, kind: str
) -> None:
    changes = {"watch__prompts": ["a red thing"], "objective__masked_length": 20}
    names = told(alone, corpus, tmp_path, objective__kind=kind, **changes)
    assert any(name.startswith("bins/text_ce/") for name in names) == (kind == "masked")
    assert any(name.startswith("bins/image_mse/") for name in names)
    assert not any(name.startswith(("calibration/", "bins/rate_regret/")) for name in names)
    assert {"tasks/image_to_text/text_ce", "samples/length_ratio"} <= names


def test_what_is_watched_does_not_change_what_is_learnt(alone: Worker, corpus: Path, tmp_path: Path) -> None:
    learnt = []
    for detail in ("full", "basic"):
        config = tiny_config(corpus, tmp_path / detail, budget__steps=4, watch__detail=detail)
        trainer = Trainer(config, gather(config), alone, str(tmp_path / detail / "run"))
        trainer.run()
        learnt.append(trainer.optimiser.tensors())
    assert learnt[0].keys() == learnt[1].keys()
    for name, tensor in learnt[0].items():
        assert torch.equal(whole(tensor), whole(learnt[1][name])), name
