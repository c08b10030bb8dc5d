"""What an evaluation leaves in MLflow: figures and files in the run, the alias and the reasons at the version."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workflows import aliases
from workflows.errors import OneFlowError
from workflows.evaluation.gate import Verdict
from workflows.evaluation.report import IMAGES, EvaluationReport, pack_images
from workflows.evaluation.scores import SCORES, Scores
from workflows.evaluation.table import TABLE, write_table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "oneflow-evaluation"
TAG_CHARACTERS = 4000
LOGGED_TABLES = "mlflow.loggedArtifacts"
"""Tag that names what MLflow's pages show as tables; `log_table` would append to a table that is there."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow takes an experiment with tables for one of prompts and judges, unless told."""
UPLOADS = 8
"""Files that are stored at once."""
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""What MLflow says of a version, a model or an alias that is not there."""


def client() -> MlflowClient | None:
    """The tracking server's client, or None where MLFLOW_TRACKING_URI names none."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient()


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what MLflow raises inside into a OneFlowError that names `what`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        cause = " ".join(str(error).split())[:300]
        raise OneFlowError(
            what, cause, "check MLFLOW_TRACKING_URI and the names, then evaluate again"
        ) from error


def version_of(server: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that holds `alias`, or None where none does."""
    from mlflow.exceptions import MlflowException

    with explained(f"models:/{name}@{alias}"):
        try:
            return server.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise


def stored(
    server: MlflowClient, run_id: str, suite: str, digest: str
) -> tuple[Scores | None, Mapping[str, float]]:
    """What a run's evaluation on the items of `digest` left: scores, where it stored them, and figures; else none."""
    from mlflow.exceptions import MlflowException

    if not _is_known(server, run_id):
        return None, {}
    with explained(f"the evaluation in run {run_id}"):
        data = server.get_run(run_id).data
    if data.tags.get(f"eval.{suite}.digest") != digest:
        return None, {}
    with tempfile.TemporaryDirectory(prefix="oneflow-scores-") as directory:
        try:
            file = server.download_artifacts(run_id, f"evaluation/{suite}/{SCORES}", directory)
            scores = Scores.from_json(json.loads(Path(file).read_text("utf-8")))
        except (MlflowException, OSError, ValueError, KeyError, TypeError):
            return None, data.metrics
    return (scores if (scores.suite, scores.digest) == (suite, digest) else None), data.metrics


def log(server: MlflowClient, report: EvaluationReport, directory: Path, pictures: int) -> str:
    """Puts figures and files into the model's run, or a new one where this server knows none; returns its id."""
    from mlflow.entities import Metric, RunTag

    with explained("logging the evaluation to MLflow"):
        known = _is_known(server, report.model["run_id"])
        run_id = report.model["run_id"] if known else _new_run(server, report)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in report.metrics.items()]
        metrics.append(Metric(f"{report.suite}/failed", report.failed, now, 0))
        server.log_batch(run_id, metrics=metrics, tags=[RunTag(f"eval.{report.suite}.digest", report.digest)])
        write_table(report.judged, directory, f"evaluation/{report.suite}", pictures)
        pack_images(directory)
        upload(server, replace(report, run_id=run_id), _files(directory), directory)
        _show_as_table(server, run_id, f"evaluation/{report.suite}/{TABLE}")
        if not known:
            server.set_terminated(run_id)
    return run_id


def table_url(server: MlflowClient, report: EvaluationReport) -> str | None:
    """The address of every prompt, output and score among the pages of MLflow; None where it has no pages."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if not address.startswith("http"):
        return None
    experiment = server.get_run(report.run_id).info.experiment_id
    run = f"{address}/#/experiments/{experiment}/runs/{report.run_id}"
    return f"{run}/artifacts/evaluation/{report.suite}/{TABLE}"


def promote(server: MlflowClient, model: Mapping[str, str], alias: str, verdict: Verdict, suite: str) -> bool:
    """Writes the verdict at the version and, where it passed, moves the alias; returns whether it did."""
    said = "passed" if verdict.passed else "refused"
    tags = {
        "": said,
        ".why": verdict.why[:TAG_CHARACTERS],
        ".at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    name, version = model["name"], model["version"]
    with explained(f"the gate of {name} version {version}"):
        for suffix, value in tags.items():
            server.set_model_version_tag(name, version, f"gate.{suite}{suffix}", value)
        if verdict.passed:
            aliases.move(server, name, alias, version, f"gate {suite}: {verdict.why}")
    return verdict.passed


def is_registered(server: MlflowClient, model: Mapping[str, str]) -> bool:
    """Whether the model is a version in the registry."""
    from mlflow.exceptions import MlflowException

    if not model["name"] or not model["version"].isdigit():
        return False
    with explained(f"{model['name']} version {model['version']}"):
        try:
            server.get_model_version(model["name"], model["version"])
        except MlflowException as error:
            if error.error_code in ABSENT:
                return False
            raise
    return True


def _is_known(server: MlflowClient, run_id: str) -> bool:
    """Whether the run is on this server: an exported model names one that may be on another."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(run_id) and server.get_run(run_id) is not None
    except MlflowException as error:
        if error.error_code in ABSENT:
            return False
        raise


def _new_run(server: MlflowClient, report: EvaluationReport) -> str:
    found = server.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else server.create_experiment(EXPERIMENT, tags=KIND)
    name = Path(report.model["name"]).name or "model"
    return str(server.create_run(experiment, run_name=f"{report.suite} {name}").info.run_id)


def _files(directory: Path) -> list[Path]:
    """What an evaluation wrote, but for the single pictures of images/ and what is kept to resume."""
    names = ["*.json", "*.jsonl", "*.png", f"{IMAGES}.zip", "sheets/*.png", "table/*.png"]
    return sorted(file for name in names for file in directory.glob(name))


def _show_as_table(server: MlflowClient, run_id: str, path: str) -> None:
    known = json.loads(server.get_run(run_id).data.tags.get(LOGGED_TABLES, "[]"))
    table = {"path": path, "type": "table"}
    if table not in known:
        server.set_tag(run_id, LOGGED_TABLES, json.dumps([*known, table]))


def upload(
    server: MlflowClient, report: EvaluationReport, files: Sequence[Path], directory: Path | None = None
) -> None:
    """Stores files as artifacts of the report's run, as they lie below `directory`; scores.json last."""

    def store(file: Path) -> None:
        inside = file.relative_to(directory).parent.parts if directory else ()
        server.log_artifact(report.run_id, str(file), "/".join(["evaluation", report.suite, *inside]))

    last = [file for file in files if file.name == SCORES]
    with explained(f"storing the evaluation in run {report.run_id}"), ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(store, [file for file in files if file not in last]))
        list(map(store, last))
