"""What a model is compared with: an evaluation that is stored, or one that is made now."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workflows.errors import OneFlowError, UsageError
from workflows.evaluation import registry
from workflows.evaluation.report import EvaluationReport
from workflows.evaluation.scores import SCORES, Scores

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN = re.compile(r"(runs:/)?([0-9a-f]{32})")


def check(
    against: str | None, model: Mapping[str, str], suite: str, digest: str, server: MlflowClient | None
) -> None:
    """UsageError, before anything is asked, where `against` can be seen to be nothing to compare `model` with."""
    if against is None:
        return
    if against.startswith("@") and not (server and registry.is_registered(server, model)):
        raise UsageError(
            f"--against {against}",
            f"{model['name'] or 'the model'} is no registered model, so it has no aliases",
            "name the other model in full: models:/NAME@ALIAS",
        )
    if run := RUN.fullmatch(against):
        _of_run(run[2], suite, digest, server)
    _of_directory(against, suite, digest)


def find(
    against: str,
    report: EvaluationReport,
    server: MlflowClient | None,
    evaluate: Callable[[str], Scores],
) -> Scores:
    """The scores of `against` on the report's items.

    `against` is a directory that an evaluation wrote (`--out`), a run of MLflow, `@alias` of the same registered model,
    or any model. Where a registered version has no scores on these items, and for other models, `evaluate` makes them.

    Raises:
        UsageError: it is the model itself, or what is stored is of other items.
        OneFlowError: the run has no evaluation on these items.
    """
    if held := _of_directory(against, report.suite, report.digest):
        return held
    if run := RUN.fullmatch(against):
        return _of_run(run[2], report.suite, report.digest, server)
    name = f"models:/{report.model['name']}{against}" if against.startswith("@") else against
    if name.startswith("models:/") and server is not None:
        from workflows.training.models import version_of

        with registry.explained(name):
            version = version_of(server, name)
        if (version.name, str(version.version)) == (report.model["name"], report.model["version"]):
            raise UsageError(f"--against {against}", "it is the model itself", "name another")
        scores, _ = registry.stored(server, version.run_id or "", report.suite, report.digest)
        if scores is not None and scores.model.get("version") == str(version.version):
            return scores
        name = f"models:/{version.name}/{version.version}"
    return evaluate(name)


def _of_directory(against: str, suite: str, digest: str) -> Scores | None:
    file = Path(against) / SCORES
    if not file.is_file():
        return None
    try:
        scores = Scores.from_json(json.loads(file.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            str(file), f"no scores of an evaluation: {error}", "evaluate that model again"
        ) from None
    if (scores.suite, scores.digest) != (suite, digest):
        raise UsageError(
            f"--against {against}",
            "it was asked other items, or in another way",
            "evaluate both with the same suite and options",
        )
    return scores


def _of_run(run_id: str, suite: str, digest: str, server: MlflowClient | None) -> Scores:
    scores = None if server is None else registry.stored(server, run_id, suite, digest)[0]
    if scores is None:
        raise OneFlowError(
            f"run {run_id}",
            f"it has no scores of {suite} on these items" if server else "MLFLOW_TRACKING_URI is not set",
            "evaluate its model with the same suite and options, or name the model instead of the run",
        )
    return scores
