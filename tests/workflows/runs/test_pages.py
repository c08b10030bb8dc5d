"""MLflow's own pages in a real browser: the preset of charts, descriptions and tags, an evaluation's table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from tests.conftest import RunningStack
from tests.workflows.evaluation.oracle import deployment
from tests.workflows.runs.made import config_of, registered, tracked
from tests.workflows.training.corpus import write_corpus
from workflows.config import load
from workflows.evaluation.run import run as evaluate
from workflows.training.charts import SECTIONS, TITLE, view_path

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
EXPERIMENT = "pages"
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium, as .ci/run does")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1600, "height": 1600})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()


@pytest.fixture(scope="module")
def server(stack: RunningStack, page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that holds a run with its version. `page` first: without a browser nothing is made."""
    url = stack.env["MLFLOW_TRACKING_URI"]
    patch = pytest.MonkeyPatch()
    # The other tests of this folder may have pointed it at a store of theirs.
    patch.setenv("MLFLOW_TRACKING_URI", url)
    base = tmp_path_factory.mktemp("pages")
    write_corpus(base / "corpus", shards=1, real=True)
    config = config_of(base / "corpus", base / "checkpoints", EXPERIMENT, name="shown")
    values = {step: 3.0 / step for step in range(1, 6)}
    names = ("heldout/loss", "train/loss", "train/image/mse", "train/grad_norm", "speed/tokens_per_s")
    tracked(config, {name: values for name in names})
    registered(config)
    yield url
    patch.undo()


def test_the_link_opens_our_charts(server: str, page: Page) -> None:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    page.goto(f"{server}/{view_path(experiment.experiment_id)}")
    page.get_by_role("button", name=TITLE).wait_for()
    for section in SECTIONS:
        page.get_by_text(section).first.wait_for()
    for metric in ("heldout/loss", "train/image/mse", "train/grad_norm"):
        page.locator("[data-testid='experiment-view-compare-runs-card']").filter(
            has_text=metric
        ).first.wait_for()
    link = page.get_by_role("link", name="open the charts").first
    assert str(link.get_attribute("href")).endswith(view_path(experiment.experiment_id))
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name.startswith("shown-")
    page.get_by_text(run.info.run_name).first.wait_for()


def test_the_version_shows_what_it_was_made_from(server: str, page: Page) -> None:
    (version,) = MlflowClient(server).search_model_versions(f"name = '{EXPERIMENT}'")
    page.goto(f"{server}/#/models/{EXPERIMENT}/versions/{version.version}")
    page.get_by_text(f"oneflow models lineage models:/{EXPERIMENT}/{version.version}").first.wait_for()
    for name in ("oneflow.corpora", "oneflow.lock_sha256", "oneflow.git_commit"):
        page.get_by_text(name).first.wait_for()
    page.get_by_text(version.tags["oneflow.codec"]).first.wait_for()


def test_the_run_shows_its_description(server: str, page: Page) -> None:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    page.goto(f"{server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}")
    page.get_by_text("oneflow train run.yaml --set name=shown-again").first.wait_for()
    page.get_by_text("oneflow.device").first.wait_for()


def test_the_table_of_an_evaluation_shows_prompts_and_pictures(
    server: str, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFLOW_HOME", str(tmp_path))
    lines: list[str] = []
    few = [
        f"items.{name}=2" for name in ("t2i_single", "t2i_multi", "caption_single", "caption_multi", "vqa")
    ]
    config = load("evaluate", "shapes", [*few, "items.story=1", "items.no_prompt=1", "gate=null"])
    with deployment() as oracle:
        report = evaluate(config, "oracle", url=oracle.url, say=lines.append)
    page.goto(lines[-1].partition(": ")[2])
    for name in ("prompt_image", "output_image", "output", "truth"):
        page.get_by_text(name, exact=True).first.wait_for()
    first = report.judged.items[0]
    page.get_by_text(first.id).first.wait_for()
    page.get_by_text(str(first.prompt[0])).first.wait_for()
    # The first prompt has no picture, so a blank one of 16 pixels; the output is the oracle's, of 64.
    page.wait_for_function(
        "[...document.querySelectorAll('[role=row] img')].slice(0, 2).map(i => i.naturalWidth).join() == '16,64'"
    )
