"""One evaluation: ask a deployment, judge, log, gate."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.errors import OneFlowError, UsageError
from workflows.evaluation import client, gate, registry
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.gate import Champion
from workflows.evaluation.report import EvaluationReport, write_items, write_metrics
from workflows.storage import sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

SUITES = {
    "shapes": "workflows.evaluation.suites.shapes",
    "coco-captions": "workflows.evaluation.suites.coco_captions",
    "coco-fid": "workflows.evaluation.suites.coco_fid",
    "dpg-bench": "workflows.evaluation.suites.dpg_bench",
    "geneval": "workflows.evaluation.suites.geneval",
    "vqa": "workflows.evaluation.suites.vqa",
    "clip-score": "workflows.evaluation.suites.clip_score",
}
"""Suite -> module with `items(config)`, `judge(items, outputs)` and `figures(judged)`."""
FORMAT = 1
"""Goes up when the same config asks other items."""
Say = Callable[[str], None]


def run(
    config: EvaluateConfig,
    model: str,
    *,
    url: str | None = None,
    out: Path | None = None,
    say: Say = lambda line: None,
) -> EvaluationReport:
    """Evaluates `model`, which the deployment at `url` serves, or one that is started for as long as it takes.

    Files go to `out`, and all of it to the model's MLflow run where MLFLOW_TRACKING_URI is set. The gate judges
    where the config has one, and moves its alias where the model is a registered version. A refusal is in the
    report, not raised.

    Raises:
        OneFlowError: no deployment answers, it serves another model, every item failed, or MLflow refuses.
    """
    with _deployment(config, model, url, say) as address:
        served = dict(client.identity(address))
        _same_model(model, served, address)
        report = _measure(config, address, served, say)
    server = registry.client()
    report = _judge(config, report, server)
    with _directory(out) as directory:
        write_items(report.judged, directory)
        if server is not None:
            report = _record(config, report, server, directory)
        else:
            write_metrics(report, directory)
    return report


def items_digest(config: EvaluateConfig) -> str:
    """Digest of all that decides what is asked, and how; figures compare only where it is equal."""
    asked = {"suite", "seed", "items"}, {"image", "text", "document"}
    what = [
        FORMAT,
        config.model_dump(mode="json", include=asked[0]),
        config.requests.model_dump(include=asked[1]),
    ]
    return sha256(json.dumps(what, sort_keys=True).encode())


@contextmanager
def _deployment(config: EvaluateConfig, model: str, url: str | None, say: Say) -> Iterator[str]:
    if url is not None:
        yield url
        return
    from workflows.serving.service import serving

    say(f"starting a deployment of {model}")
    serve = config.serve
    with serving(model, replicas=serve.replicas, cpus=serve.cpus, gpus=serve.gpus) as address:
        yield address


def _same_model(model: str, served: dict[str, str], address: str) -> None:
    """Refuses to log one model's figures at another."""
    if not model.startswith("models:/"):
        return
    from workflows.serving.resolution import parse

    name, version, alias = parse(model)
    server = registry.client()
    if alias and server is not None:
        found = registry.version_of(server, name, alias)
        if found is None:
            raise UsageError(
                model, "no version holds that alias", "name one of the registered model's aliases"
            )
        version = str(found.version)
    if (served["name"], served["version"]) != (name, version or served["version"]):
        raise UsageError(
            f"the deployment at {address}",
            f"it serves {served['name']} version {served['version'] or '-'}, not {model} (version {version})",
            "name the model that it serves, or leave --url out",
        )


def _measure(config: EvaluateConfig, address: str, served: dict[str, str], say: Say) -> EvaluationReport:
    suite: Any = importlib.import_module(SUITES[config.suite])
    items, started = suite.items(config), time.perf_counter()
    say(f"asking {len(items)} items at {address}")
    step = max(len(items) // 10, 1)

    def progress(done: int) -> None:
        if done % step == 0 or done == len(items):
            say(f"{done}/{len(items)} items, {time.perf_counter() - started:.0f} s")

    outputs = client.ask_all(address, items, config.requests, progress)
    failures = [output.error for output in outputs if output.error]
    if outputs and len(failures) == len(outputs):
        raise OneFlowError(
            f"all {len(failures)} items at {address}", failures[0], "see the log of the deployment"
        )
    judged = suite.judge(items, outputs)
    seconds = time.perf_counter() - started
    return EvaluationReport(
        config.suite, items_digest(config), served, suite.figures(judged), judged, seconds
    )


def _judge(config: EvaluateConfig, report: EvaluationReport, server: MlflowClient | None) -> EvaluationReport:
    if config.gate is None:
        return report
    champion: Champion | None = None
    notes: tuple[str, ...] = ()
    if server is not None and registry.is_registered(server, report.model):
        champion, notes = registry.champion_of(
            server, report.model, config.gate.alias, report.suite, report.digest
        )
    return replace(report, verdict=gate.judge(report.metrics, config.gate, champion, notes))


def _record(
    config: EvaluateConfig, report: EvaluationReport, server: MlflowClient, directory: Path
) -> EvaluationReport:
    """Figures and files first: a champion without them could never be compared with."""
    report = replace(report, run_id=registry.log(server, report, directory))
    if config.gate and report.verdict and registry.is_registered(server, report.model):
        moved = registry.promote(server, report.model, config.gate.alias, report.verdict, report.suite)
        report = replace(report, promoted=moved)
    registry.upload(server, report, [write_metrics(report, directory)])
    return report


@contextmanager
def _directory(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="oneflow-evaluation-") as temporary:
        yield Path(temporary)
