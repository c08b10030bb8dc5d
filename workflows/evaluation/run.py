"""One evaluation: ask a deployment, judge, compare, log, gate."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.errors import OneFlowError, UsageError
from workflows.evaluation import asking, gate, opponent, registry
from workflows.evaluation.comparison import compare
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.gate import Champion
from workflows.evaluation.item import Item, Output
from workflows.evaluation.outputs import OutputStore
from workflows.evaluation.progress import Progress
from workflows.evaluation.report import EvaluationReport, write_items, write_metrics
from workflows.evaluation.scores import Scores, pairs_of
from workflows.revision import git_commit
from workflows.storage import join, sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

SUITES = {
    "shapes": "workflows.evaluation.suites.shapes",
    "coco-captions": "workflows.evaluation.suites.coco_captions",
    "coco-fid": "workflows.evaluation.suites.coco_fid",
    "dpg-bench": "workflows.evaluation.suites.dpg_bench",
    "dpg-bench-shapes": "workflows.evaluation.suites.dpg_bench",
    "geneval": "workflows.evaluation.suites.geneval",
    "geneval-shapes": "workflows.evaluation.suites.geneval",
    "vqa": "workflows.evaluation.suites.vqa",
    "clip-score": "workflows.evaluation.suites.clip_score",
}
"""Suite -> module with `items(config)`, `judge(items, outputs)` and `figures(judged)`.

One that can judge outputs one by one has `judge_one(item, output)` too, and `judge` is given what it said.
"""
FORMAT = 1
"""Goes up when the same config asks other items."""
Say = Callable[[str], None]
Rules = Mapping[str, Any]


def run(
    config: EvaluateConfig,
    model: str,
    *,
    url: str | None = None,
    out: Path | None = None,
    against: str | None = None,
    say: Say = lambda line: None,
) -> EvaluationReport:
    """Evaluates `model`, which the deployment at `url` serves, or one that is started for as long as it takes.

    Files go to `out`, and all of it to the model's MLflow run where MLFLOW_TRACKING_URI is set. The gate judges
    where the config has one, and moves its alias where the model is a registered version. A refusal is in the
    report, not raised. `against` names what it is compared with: see `opponent.find`.

    Outputs are kept as they come until the evaluation is over, so that the same call asks only what is missing
    after it was killed, and what failed.

    Raises:
        OneFlowError: no deployment answers, it serves another model, every item failed, or MLflow refuses.
    """
    server = registry.client()
    with _deployment(config, model, url, say) as address:
        served = dict(asking.identity(address))
        _same_model(model, served, address)
        rules = rules_of(config, served)
        digest = items_digest(config, rules)
        opponent.check(against, served, config.suite, digest, server)
        store = OutputStore(_folder(config, out, served, digest))
        with closing(store):
            report = _measure(config, address, served, rules, digest, store, say)
    scores = Scores.of(report)
    if against is not None:
        report = _compare(config, report, scores, against, server, out, say)
    report = _judge(config, report, scores, server)
    with _directory(out) as directory:
        write_items(report.judged, directory)
        scores.write(directory)
        if report.comparison is not None:
            report.comparison.write(directory)
        if server is not None:
            report = _record(config, report, server, directory)
            if link := registry.table_url(server, report):
                say(f"every prompt, output and score: {link}")
        else:
            write_metrics(report, directory)
    if not report.failed:
        store.discard()
    return report


def items_digest(config: EvaluateConfig, rules: Rules | None = None) -> str:
    """Digest of all that decides what is asked, and how; figures compare only where it is equal.

    `rules` are the suite's, for one that has any: how it scores, by whose judgement, on which data.
    """
    asked = {"suite", "seed", "items"}, {"image", "text", "document"}
    what: list[Any] = [
        FORMAT,
        config.model_dump(mode="json", include=asked[0]),
        config.requests.model_dump(include=asked[1]),
    ]
    what += [rules] if rules else []
    return sha256(json.dumps(what, sort_keys=True).encode())


def rules_of(config: EvaluateConfig, served: Mapping[str, str]) -> Rules:
    """What the suite says of how it scores; empty for one that has nothing to say."""
    rules: Callable[..., Rules] | None = getattr(_suite(config), "rules", None)
    return dict(rules(config, served)) if rules else {}


def _suite(config: EvaluateConfig) -> Any:
    return importlib.import_module(SUITES[config.suite])


def _folder(config: EvaluateConfig, out: Path | None, served: Mapping[str, str], digest: str) -> str:
    """Where outputs are kept: another folder for another model, other items, options or code."""
    what = json.dumps([FORMAT, dict(served), digest, git_commit()], sort_keys=True)
    home = Path(os.environ.get("ONEFLOW_HOME") or ".oneflow").absolute() / "evaluations"
    root = config.resume or str(home if out is None else out / "unfinished")
    return join(root, f"{config.suite}-{sha256(what.encode())[:16]}")


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


def _measure(
    config: EvaluateConfig,
    address: str,
    served: Mapping[str, str],
    rules: Rules,
    digest: str,
    store: OutputStore,
    say: Say,
) -> EvaluationReport:
    suite, started = _suite(config), time.perf_counter()
    items = suite.items(config)
    early: dict[str, Any] = {}

    def seen(item: Item, output: Output) -> None:
        if hasattr(suite, "judge_one"):
            early[item.id] = suite.judge_one(item, output)

    def ask(
        asked: Sequence[Item],
        progress: Progress | None = None,
        seen: Callable[[Item, Output], None] | None = None,
    ) -> list[Output]:
        return asking.ask_all(
            address,
            asked,
            config.requests,
            concurrency=config.concurrency,
            store=store,
            model=served,
            progress=progress or Progress(say),
            seen=seen,
        )

    told = Progress(say)
    outputs = ask(items, told, seen)
    failures = [output.error for output in outputs if output.error]
    if outputs and len(failures) == len(outputs):
        raise OneFlowError(
            f"all {len(failures)} items at {address}", failures[0], "see the log of the deployment"
        )
    given = {"judged": early} if early else {}
    judged = suite.judge(items, outputs, config=config, ask=ask, rules=rules, **given)
    figures = suite.figures(judged)
    seconds = time.perf_counter() - started
    return EvaluationReport(config.suite, digest, dict(served), figures, judged, seconds, resumed=told.kept)


def _scenes(report: EvaluationReport) -> dict[str, str]:
    return {item.id: item.scene for item in report.judged.items}


def _compare(
    config: EvaluateConfig,
    report: EvaluationReport,
    scores: Scores,
    against: str,
    server: MlflowClient | None,
    out: Path | None,
    say: Say,
) -> EvaluationReport:
    ungated, beside = config.model_copy(update={"gate": None}), out / "against" if out is not None else None

    def evaluate(other: str) -> Scores:
        return Scores.of(run(ungated, other, out=beside, say=say))

    theirs = opponent.find(against, report, server, evaluate)
    return replace(
        report, comparison=compare(scores, theirs, report.figures, _scenes(report), config.compare)
    )


def _judge(
    config: EvaluateConfig, report: EvaluationReport, scores: Scores, server: MlflowClient | None
) -> EvaluationReport:
    if config.gate is None:
        return report
    champion, notes = _champion(config, report, scores, server)
    lower = {name for name, figure in report.figures.items() if figure.better == "lower"}
    return replace(report, verdict=gate.judge(report.metrics, config.gate, champion, notes, lower))


def _champion(
    config: EvaluateConfig, report: EvaluationReport, scores: Scores, server: MlflowClient | None
) -> tuple[Champion | None, tuple[str, ...]]:
    """The version that holds the alias, if it was measured on the same items and is another; else a note why not."""
    assert config.gate is not None
    model, alias = report.model, config.gate.alias
    if server is None or not registry.is_registered(server, model):
        return None, ()
    found = registry.version_of(server, model["name"], alias)
    if found is None:
        return None, (f"there is no {alias} yet",)
    if str(found.version) == model["version"]:
        return None, (f"this version is the {alias}",)
    theirs, metrics = registry.stored(server, found.run_id or "", report.suite, report.digest)
    another = theirs is not None and theirs.model.get("version") != str(found.version)
    if not metrics or another:
        return None, (f"{alias} version {found.version} was not measured on these items",)
    pairs = {
        name: pairs_of(name, report.figures.get(name), scores, theirs, _scenes(report))
        for name in config.gate.no_regression
        if theirs is not None
    }
    return Champion(str(found.version), metrics, pairs), ()


def _record(
    config: EvaluateConfig, report: EvaluationReport, server: MlflowClient, directory: Path
) -> EvaluationReport:
    """Figures and files first: a champion without them could never be compared with."""
    report = replace(report, run_id=registry.log(server, report, directory, config.table_pictures))
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
