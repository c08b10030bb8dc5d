"""Training under Ray: a killed worker is replaced, the same MLflow run goes on, and the result is registered."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from oneflow_core.pipeline import OneFlowPipeline
from tests.infra.monitoring import RAYS
from tests.workflows.training.corpus import tiny_config, write_corpus
from tests.workflows.training.scraping import check_a_run, scraped
from workflows.errors import OneFlowError, UsageError
from workflows.leases import claim
from workflows.lineage.chain import trace
from workflows.training import models
from workflows.training.materials import gather
from workflows.training.train import LEASE, run
from workflows.training.worker import run_root

TEMPORARY = Path(f"/tmp/of-train-{os.getpid()}")
"""Short, as the paths of sockets must be."""


@pytest.fixture(scope="module")
def ray_here(tracking: str) -> Iterator[None]:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        _temp_dir=str(TEMPORARY),
        _system_config={"metrics_report_interval_ms": 300},
    )
    yield
    ray.shutdown()
    shutil.rmtree(TEMPORARY, ignore_errors=True)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{directory}/mlflow.db"
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    MlflowClient(uri).create_experiment("tiny", artifact_location=str(directory / "artifacts"))
    yield uri
    patch.undo()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(base, real=True)
    return base


def _our_workers() -> list[psutil.Process]:
    """Training workers of this module's Ray, not of another on this machine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                lines = [" ".join(parent.cmdline()) for parent in process.parents()]
                found += [process] if any(str(TEMPORARY) in line for line in lines) else []
    return found


def _runs(client: MlflowClient) -> list[Run]:
    """Runs of the experiment `tiny`, newest first."""
    experiment = client.get_experiment_by_name("tiny")
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def kill_one_worker(
    root: Path,
    tracking: str,
    killed: list[psutil.Process],
    over: threading.Event,
    sign: str = "commits/*.json",
    name: str = "tiny",
) -> None:
    """SIGKILL to a training worker once there is a `sign` below the run and MLflow has begun the run `name`.

    `killed` gets it, and the processes that it had started.
    """
    client = MlflowClient(tracking)
    while not over.wait(0.05):
        experiment = client.get_experiment_by_name("tiny")
        names = [r.info.run_name for r in _runs(client)] if experiment else []
        begun = any(found.startswith(f"{name}-") for found in names)
        if begun and list(root.glob(f"*/{sign}")):
            for process in _our_workers():
                killed += [process, *process.children()]
                process.kill()
                return


def test_train_survives_a_killed_worker_and_registers_a_model_that_loads(
    ray_here: None, tracking: str, corpus: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        corpus,
        tmp_path / "checkpoints",
        budget__steps=60,
        checkpoint__every_steps=10,
        watch__heldout_every=20,
        watch__prompts=["a red thing"],
        watch__captions=1,
        watch__sampler_steps=4,
        watch__sample_every=40,
        registry__name="tiny",
        registry__codec=str(corpus / "codec"),
        registry__encoder=str(corpus / "encoder"),
        tracking__experiment="tiny",
        data__reader="process",
    )
    killed: list[psutil.Process] = []
    said: list[str] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_one_worker, args=(tmp_path / "checkpoints", tracking, killed, over))
    killer.start()
    try:
        with scraped() as seen:
            report = run(config, say=said.append)
    finally:
        over.set()
        killer.join()

    assert len(killed) == 2 and not killed[1].is_running(), "the worker's reader outlived it"
    assert report.step == 60
    check_a_run(seen, f"tiny-{report.run_key[:8]}", workers=2)
    assert seen.keys() >= RAYS
    assert report.model and report.model.uri == "models:/tiny@candidate"
    client = MlflowClient(tracking)
    assert report.run_id
    mlflow_run = client.get_run(report.run_id)
    assert mlflow_run.data.tags["oneflow.attempt"] == "2"
    assert mlflow_run.data.tags["oneflow.world_size"] == "2"
    assert mlflow_run.info.status == "FINISHED"
    assert report.attempts == 2 and 0 < report.goodput["share"] < 1
    steps = [m.step for m in client.get_metric_history(report.run_id, "train/loss")]
    assert steps == list(range(2, 61, 2))
    assert [i.dataset.digest for i in mlflow_run.inputs.dataset_inputs] == ["0" * 12]
    assert {a.path for a in client.list_artifacts(report.run_id)} >= {"images", "traces", "config.json"}

    pipeline = OneFlowPipeline.from_pretrained(report.model.uri)
    assert pipeline.identity["run_id"] == report.run_id
    [row] = models.listed()
    assert (row["name"], row["aliases"], row["run_id"]) == ("tiny", ["candidate"], report.run_id)
    assert models.promoted("models:/tiny@candidate", "champion")["before"] is None
    line = trace(client, "models:/tiny@champion").to_json()
    assert line["corpora"][0]["version"] == "0" * 12
    for raw, steps in ((False, None), (True, 50)):
        out = tmp_path / f"exported-{raw}"
        told = models.exported_run(report.run_id, out, steps, raw)
        assert told["version"] == f"{report.run_key}@{steps or 60}" + "-raw" * raw
        assert OneFlowPipeline.from_pretrained(out).parts.notes["steps"] == str(steps or 60)
    with pytest.raises(OneFlowError, match="checkpoint of step 7 .*committed: 60, 50"):
        models.exported_run(report.run_id, tmp_path / "none", 7, False)

    begun = time.monotonic()
    again = run(config, say=said.append)
    assert "nothing is left to train" in said[-2]
    assert again.model == report.model
    assert time.monotonic() - begun < 200
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_workers_that_die_before_they_got_anywhere_end_the_run_and_are_named(
    ray_here: None, tracking: str, corpus: Path, tmp_path: Path
) -> None:
    """SIGKILL is what the kernel sends a process when memory is used up."""
    changes = {"compute__max_failures": 0, "budget__steps": 10_000, "checkpoint__every_steps": 10_000}
    config = tiny_config(corpus, tmp_path / "c", name="short-lived", tracking__experiment="tiny", **changes)
    over = threading.Event()
    arguments = (tmp_path / "c", tracking, [], over, "attempts.json", "short-lived")
    killer = threading.Thread(target=kill_one_worker, args=arguments)
    killer.start()
    try:
        with pytest.raises(OneFlowError) as caught:
            run(config, say=lambda line: None)
    finally:
        over.set()
        killer.join()
    assert re.match(r"training, rank [01]: .*(died|killed)", str(caught.value)), str(caught.value)
    assert str(caught.value).count("rank") == 1 and len(str(caught.value)) < 1000
    assert "run the command again" in caught.value.mend
    client = MlflowClient(tracking)
    [mlflow_run] = [r for r in _runs(client) if r.info.run_name.startswith("short-lived-")]
    assert mlflow_run.info.status == "FAILED"
    assert mlflow_run.data.tags["oneflow.failure"] == str(caught.value)
    assert mlflow_run.data.tags["mlflow.note.content"].startswith(f"Failed: {caught.value}")


def test_a_diverged_run_ends_at_once_and_says_so(
    ray_here: None, tracking: str, corpus: Path, tmp_path: Path
) -> None:
    wrong = {"optimiser__lr": 1e30, "optimiser__warmup_steps": 0, "tracking__experiment": "tiny"}
    config = tiny_config(corpus, tmp_path / "c", **wrong)
    begun = time.monotonic()
    told = r"training, rank [01] on \S+: step \d+: the loss is .*lower optimiser.lr"
    with pytest.raises(OneFlowError, match=told):
        run(config, say=lambda line: None)
    assert time.monotonic() - begun < 400
    client = MlflowClient(tracking)
    newest = _runs(client)[0]
    assert newest.info.status == "FAILED"
    assert "lower optimiser.lr" in newest.data.tags["oneflow.failure"]
    assert newest.data.tags["oneflow.attempt"] == "1"


def test_a_second_driver_of_a_run_is_refused_while_the_first_lives(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(corpus, tmp_path / "c")
    monkeypatch.setattr("workflows.training.train.PATIENCE_S", 0.5)
    said: list[str] = []
    told = f"the run is being trained by process {os.getpid()}"
    lease = claim(run_root(config, gather(config).run_key), LEASE, "the run is being trained")
    with lease, pytest.raises(OneFlowError, match=told):
        run(config, say=said.append)
    assert f"driven by process {os.getpid()}" in said[1]


def test_what_a_config_gets_wrong_is_told_before_anything_starts(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OneFlowError, match="neither manifest.json nor latest is there"):
        run(tiny_config(tmp_path / "nowhere", tmp_path))
    with pytest.raises(UsageError, match="model.dims.widht: no such field"):
        run(tiny_config(corpus, tmp_path, model__dims={"widht": 3}))
    with pytest.raises(UsageError, match="heads must divide width"):
        run(tiny_config(corpus, tmp_path, model__dims={"width": 31}))
    with pytest.raises(UsageError, match="model.llama: .*No such file"):
        run(tiny_config(corpus, tmp_path, model__llama=str(tmp_path)))


def test_the_preset_is_valid_and_the_key_knows_what_makes_a_run(corpus: Path, tmp_path: Path) -> None:
    from workflows.config import load

    assert load("train", "shapes-nano").name == "shapes-nano"
    config = tiny_config(corpus, tmp_path)
    key = gather(config).run_key
    same = {"compute__workers": 1, "checkpoint__every_steps": 7, "watch__log_every": 3, "data__read_ahead": 0}
    for change, value in same.items():
        assert gather(tiny_config(corpus, tmp_path, **{change: value})).run_key == key
    for change, value in {"seed": 1, "optimiser__lr": 1e-4, "data__tokens": 128, "budget__steps": 9}.items():
        assert gather(tiny_config(corpus, tmp_path, **{change: value})).run_key != key
