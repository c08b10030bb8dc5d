"""What an evaluation leaves in MLflow: figures and files in the run, the alias and the reasons at the version."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workflows.errors import OneFlowError
from workflows.evaluation.gate import Champion, Verdict
from workflows.evaluation.report import IMAGES, EvaluationReport, pack_images

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "oneflow-evaluation"
TAG_CHARACTERS = 4000
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""What MLflow says of a version, a model or an alias that is not there."""


def client() -> MlflowClient | None:
    """The tracking server's client, or None where MLFLOW_TRACKING_URI names none."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
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


def champion_of(
    server: MlflowClient, model: Mapping[str, str], alias: str, suite: str, digest: str
) -> tuple[Champion | None, tuple[str, ...]]:
    """The version that holds `alias`, if it was measured on the same items and is another; else a note why not."""
    found = version_of(server, model["name"], alias)
    if found is None:
        return None, (f"there is no {alias} yet",)
    version = str(found.version)
    if version == model["version"]:
        return None, (f"this version is the {alias}",)
    with explained(f"the run of {model['name']} version {version}"):
        run = server.get_run(found.run_id) if found.run_id else None
    if run is None or run.data.tags.get(f"eval.{suite}.digest") != digest:
        return None, (f"{alias} version {version} was not measured on these items",)
    return Champion(version, run.data.metrics), ()


def log(server: MlflowClient, report: EvaluationReport, directory: Path) -> str:
    """Puts figures and files into the model's run, or a new one where this server knows none; returns its id."""
    from mlflow.entities import Metric, RunTag

    with explained("logging the evaluation to MLflow"):
        known = _is_known(server, report.model["run_id"])
        run_id = report.model["run_id"] if known else _new_run(server, report)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in report.metrics.items()]
        metrics.append(Metric(f"{report.suite}/failed", report.failed, now, 0))
        server.log_batch(run_id, metrics=metrics, tags=[RunTag(f"eval.{report.suite}.digest", report.digest)])
        pack_images(directory)
        files = [f for f in directory.rglob("*") if f.is_file() and f.parent.name != IMAGES]
        upload(server, replace(report, run_id=run_id), sorted(files), directory)
        if not known:
            server.set_terminated(run_id)
    return run_id


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
            server.set_registered_model_alias(name, alias, version)
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
    experiment = found.experiment_id if found else server.create_experiment(EXPERIMENT)
    name = Path(report.model["name"]).name or "model"
    return str(server.create_run(experiment, run_name=f"{report.suite} {name}").info.run_id)


def upload(
    server: MlflowClient, report: EvaluationReport, files: Sequence[Path], directory: Path | None = None
) -> None:
    """Stores files as artifacts of the report's run, as they lie below `directory`."""
    with explained(f"storing the evaluation in run {report.run_id}"):
        for file in files:
            inside = file.relative_to(directory).parent.parts if directory else ()
            server.log_artifact(report.run_id, str(file), "/".join(["evaluation", report.suite, *inside]))
