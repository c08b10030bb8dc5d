"""kill -9 of workers, stores, MLflow, drivers and nodes while a run trains: it goes on, and ends where it would have.

`oneflow bench train-faults` does each at random moments, many times.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningStack
from tests.workflows.training.test_distributed import launch, run_root
from workflows.bench.train_site import EVERY, LOG_EVERY, TrainSite
from workflows.training.best import load_best
from workflows.training.commit import commit_name
from workflows.training.config import TrainConfig

STEPS = 600
"""So many that none of the waits below outlasts the run."""
AWAY_S = 12.0
EVALUATED = ("heldout", "tasks", "calibration")
ALWAYS = ("train", "speed", "data", "goodput", "guard", "heldout")
"""Groups of metrics that every reading has; others lack what did not occur."""


@pytest.fixture(scope="module")
def site(stack: RunningStack) -> Iterator[TrainSite]:
    held = TrainSite(stack.state_dir)
    try:
        held.start()
        yield held
    finally:
        held.stop()
        held.start_services()


@pytest.mark.timeout(1500)
def test_a_run_outlives_every_part_it_is_made_of(site: TrainSite, tmp_path: Path) -> None:
    settings = {"budget__steps": STEPS, "checkpoint__keep": STEPS, "compute__min_workers": 1}
    undisturbed = TrainConfig.model_validate(
        site.config("undisturbed", **settings, checkpoint__url=str(tmp_path / "undisturbed"))
    )
    alone = launch(undisturbed, tmp_path, 2)
    kept: list[int] = []
    """Newest committed step at each kill: what the next attempt goes on from, or later."""

    driver = site.driver("disturbed", **settings)
    site.wait("first commit", lambda: site.newest("disturbed") >= EVERY, driver)

    # Tracking goes away for good; a worker and the store die at once, and the store stays away for a while.
    site.kill_service("mlflow")
    before = site.newest("disturbed")
    site.wait("commit without tracking", lambda: site.newest("disturbed") > before, driver)
    kept.append(site.newest("disturbed"))
    site.kill_service("s3")
    assert site.kill_worker()
    time.sleep(AWAY_S)
    site.start_services()
    site.wait("attempt after the store's return", lambda: len(site.attempts("disturbed")) == 2, driver)

    # The store alone: no attempt is lost by it.
    site.wait("commit", lambda: site.newest("disturbed") > kept[-1], driver)
    site.kill_service("s3")
    time.sleep(AWAY_S / 4)
    site.start_services()
    before = site.newest("disturbed")
    site.wait("commit after the store's return", lambda: site.newest("disturbed") > before, driver)
    assert len(site.attempts("disturbed")) == 2

    kept.append(site.newest("disturbed"))
    driver.kill()
    driver = site.driver("disturbed", **settings)
    # The workers of the killed driver may commit for a moment.
    site.wait("attempt of the next driver", lambda: len(site.attempts("disturbed")) == 3, driver)
    before = site.newest("disturbed")
    site.wait("commit of the next driver", lambda: site.newest("disturbed") > before, driver)

    code = driver.terminate()
    stopped = site.newest("disturbed")
    kept.append(stopped)
    assert code == 128 + signal.SIGTERM, driver.lines[-4:]
    assert f"stopped by SIGTERM; step {stopped} is kept; run the same command again" in driver.lines[-1]
    client, run = site.tracked("disturbed")
    assert run.info.status == "KILLED"

    driver = site.driver("disturbed", **settings)
    site.wait("commit", lambda: site.newest("disturbed") >= stopped + 2 * EVERY, driver)
    same = site.newest("disturbed") // EVERY * EVERY
    kept.append(site.newest("disturbed"))
    site.kill_node()
    report = driver.report()

    assert report["step"] == STEPS
    alone.finish()
    reference = run_root(undisturbed)
    for step in range(EVERY, same + 1, EVERY):
        files = json.loads((reference / "commits" / commit_name(step)).read_text())["files"]
        assert site.digests("disturbed", step) == files, step
    ours, theirs = (load_best(root)[1] for root in (report["root"], str(reference)))
    for name in ours.kinds():
        wanted = theirs.read(name).flatten().tolist()
        assert ours.read(name).flatten().tolist() == pytest.approx(wanted, abs=2e-4), name

    attempts = site.attempts("disturbed")
    assert [a["attempt"] for a in attempts] == [1, 2, 3, 4, 5] == list(range(1, report["attempts"] + 1))
    assert [a["world_size"] for a in attempts] == [2, 2, 2, 2, 1]
    assert all(a["start_step"] >= step for a, step in zip(attempts[1:], kept, strict=True)), (attempts, kept)

    client, run = site.tracked("disturbed")
    assert run.info.status == "FINISHED"
    assert (run.data.tags["oneflow.attempt"], run.data.tags["oneflow.world_size"]) == ("5", "1")
    assert "attempts.json" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    for metric in run.data.metrics:
        steps, group = site.history("disturbed", metric), metric.partition("/")[0]
        every = 100 if group in EVALUATED else LOG_EVERY
        if group in ALWAYS:
            assert steps == list(range(every, STEPS + 1, every)), metric
        assert steps == sorted(set(steps)) and set(steps) <= set(range(every, STEPS + 1, every)), metric

    goodput = report["goodput"]
    parts = sum(value for name, value in goodput.items() if name.endswith("_s"))
    assert goodput["share"] == pytest.approx(goodput["steps_s"] / parts)
    assert goodput["restart_s"] > 4 * 2 and goodput["lost_s"] >= 0
