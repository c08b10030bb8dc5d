"""The main job: every stage of the line, one after the other, by the functions that the single commands call."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workflows.demo.config import DemoConfig
from workflows.demo.ledger import Ledger
from workflows.demo.memory import MemoryWatch
from workflows.errors import OneFlowError, Refused

if TYPE_CHECKING:
    from oneflow_core.data.manifest import Manifest
    from workflows.corpus.config import CorpusConfig
    from workflows.evaluation.report import EvaluationReport
    from workflows.stack.lifecycle import Status
    from workflows.training.config import TrainConfig
    from workflows.training.train import TrainReport

Say = Callable[[str], None]
STAGES = 9


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Where everything is that the demo made."""

    page: Path
    model: str
    run_id: str
    corpus_version: str
    promoted: bool
    why: str
    """What the gate said."""
    peak_memory_bytes: int
    mlflow_url: str
    ledger: Ledger


def run(
    config: DemoConfig,
    *,
    reuse: bool = False,
    state_dir: Path | None = None,
    say: Say = print,
    command: str = "",
) -> DemoReport:
    """Runs the line. The corpus is reused where it stands; a training that ended is not, unless `reuse`.

    `command` is shown in the report. All configs are checked before anything starts. The stack is left running,
    whatever happens.

    Raises:
        OneFlowError: a stage failed; the text names it.
    """
    configs = config.stack_config(), config.corpus_config(), config.train_config(), config.evaluate_config()
    ledger = Ledger(say, STAGES)
    watch = MemoryWatch(lambda: [os.getpid(), *_service_pids(state_dir)])
    with watch.running():
        status = _stack(ledger, config, state_dir)
        _synth(ledger, config, configs[1])
        manifest = _corpus(ledger, configs[1])
        trained = _train(ledger, config, manifest, reuse)
        evaluated = _evaluate(ledger, config, trained)
        page = _show(ledger, config, trained, evaluated, manifest, watch, command)
    return DemoReport(
        page=page,
        model=_model(trained, evaluated, config),
        run_id=trained.run_id or "",
        corpus_version=trained.corpus_version,
        promoted=evaluated.promoted,
        why=evaluated.verdict.why if evaluated.verdict else "the config has no gate",
        peak_memory_bytes=watch.peak_bytes,
        mlflow_url=status.mlflow_url or os.environ.get("MLFLOW_TRACKING_URI", ""),
        ledger=ledger,
    )


def _stack(ledger: Ledger, config: DemoConfig, state_dir: Path | None) -> Status:
    from workflows.stack import connect
    from workflows.stack.lifecycle import up

    with ledger.stage("stack", "S3, MLflow and Ray on loopback") as note:
        status = up(config.stack_config(), state_dir, ledger.say)
        connect(state_dir)
        if status.serve_url:
            raise Refused(
                f"Ray Serve at {status.serve_url}",
                "it serves on this stack, and the evaluation needs its place",
                'end "oneflow serve" with Ctrl-C; if none runs any more, "oneflow stack down" ends it all',
            )
        running = [name for name, service in status.services.items() if service.state == "running"]
        note.result = f"{', '.join(running)} run"
    return status


def _synth(ledger: Ledger, config: DemoConfig, corpus: CorpusConfig) -> None:
    from workflows.corpus.synth import KINDS, synthesise

    with ledger.stage("corpus", "drawing scenes, captions, questions and stories") as note:
        counts, wrote = config.synth.counts(), False
        for kind in KINDS:
            report = synthesise(config.raw_url(corpus.root), counts[kind], config.synth.seed, kind)
            wrote |= report.wrote
        drawn = f"{sum(counts.values()):,} documents"
        note.result = drawn if wrote else f"{drawn} were there already"


def _corpus(ledger: Ledger, config: CorpusConfig) -> Manifest:
    from workflows.corpus import build

    words = {
        "ingest": "files to documents, what is broken to quarantine",
        "encode": "images to latents and features",
        "shard": "documents and latents to shards with a manifest",
    }
    manifest = build.finished(config)
    for stage, what in words.items():
        with ledger.stage(stage, what) as note:
            if manifest is not None:
                note.result = "nothing to do"
                continue
            report = build.run(config, stage)  # type: ignore[arg-type]
            note.result = _built(report.manifest)
    found = manifest or build.finished(config)
    assert found is not None
    return found


def _built(manifest: Manifest | None) -> str:
    if manifest is None:
        return "done"
    totals = manifest.totals
    return f"{manifest.name}@{manifest.version}: {totals.samples:,} samples, {totals.images:,} images"


def _train(ledger: Ledger, config: DemoConfig, manifest: Manifest, reuse: bool) -> TrainReport:
    from workflows.training import train

    with ledger.stage("train", "FSDP over Ray Train workers") as note:
        settled = _next_run(config.train_config(manifest.base), reuse)
        report = train.run(settled, say=ledger.say)
        loss = "" if report.best_loss is None else f", held-out loss {report.best_loss:.3f}"
        note.result = f"{report.step:,} steps, seed {settled.seed}{loss}"
        note.seconds = report.seconds["train"]
    version = f"{report.model.uri}, version {report.model.version}" if report.model else "nothing registered"
    ledger.record("register", report.seconds["register"], version)
    return report


def _next_run(config: TrainConfig, reuse: bool) -> TrainConfig:
    """`config` with the first seed from its own on whose run is not over; with `reuse`, the last whose run is."""
    last = config
    while has_ended(config):
        last, config = config, config.model_copy(update={"seed": config.seed + 1})
    return last if reuse else config


def has_ended(config: TrainConfig) -> bool:
    """Whether a run of this very config, over this corpus, is over: nothing would be left to train."""
    from workflows.training.materials import gather
    from workflows.training.train import ended
    from workflows.training.worker import run_root

    return ended(config, run_root(config, gather(config).run_key))


def _evaluate(ledger: Ledger, config: DemoConfig, trained: TrainReport) -> EvaluationReport:
    from workflows.evaluation.run import run as evaluate

    with ledger.stage("evaluate", "the served candidate on what training never saw, and the gate") as note:
        if trained.model is None:
            raise OneFlowError("the trained model", "it is not registered", "set train.registry.name")
        report = evaluate(config.evaluate_config(), trained.model.uri, say=ledger.say)
        if report.verdict is None:
            note.result = f"{len(report.figures)} figures"
        else:
            note.result = "the gate holds" if report.verdict.passed else "the gate does not hold"
    return report


def _show(
    ledger: Ledger,
    config: DemoConfig,
    trained: TrainReport,
    evaluated: EvaluationReport,
    manifest: Manifest,
    watch: MemoryWatch,
    command: str,
) -> Path:
    from workflows.demo.exhibits import compose
    from workflows.demo.report import write

    directory = Path(config.report)
    with ledger.stage("show", "the report") as note:
        report = compose(trained, evaluated, _model(trained, evaluated, config), manifest, command)
        note.result = str(directory / "index.html")
    return write(report.finished(ledger.stages, watch.peak_bytes), directory)


def _model(trained: TrainReport, evaluated: EvaluationReport, config: DemoConfig) -> str:
    """The address by which the new model is had: by the champion's alias where it got that."""
    assert trained.model is not None
    gate = config.evaluate_config().gate
    alias = gate.alias if gate and evaluated.promoted else trained.model.alias
    return f"models:/{trained.model.name}@{alias}"


def _service_pids(state_dir: Path | None) -> list[int]:
    from workflows.stack.state import StateDirectory

    return [record.pid for record in StateDirectory(state_dir).load().services.values()]
