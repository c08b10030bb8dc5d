"""The registry as people see it: what there is, which version an alias means, and where a version came from."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workflows.errors import OneFlowError, UsageError
from workflows.tracking import client_of
from workflows.training.identity import WEIGHTS
from workflows.training.register import TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def listed() -> list[dict[str, Any]]:
    """Versions of all registered models, by name and newest first."""
    with _registry("the registered models") as client:
        models = {m.name: m for m in client.search_registered_models()}
        rows = [_row(v, models[v.name].aliases) for v in client.search_model_versions() if v.name in models]
    return sorted(rows, key=lambda row: (row["name"], -int(row["version"])))


def promoted(uri: str, alias: str) -> dict[str, Any]:
    """Point `alias` at the version that `uri` means; returns it and the version that had the alias before."""
    with _registry(uri) as client:
        version = _version(client, uri)
        before = dict(client.get_registered_model(version.name).aliases).get(alias)
        client.set_registered_model_alias(version.name, alias, version.version)
    return {
        "name": version.name,
        "version": str(version.version),
        "alias": alias,
        "uri": f"models:/{version.name}@{alias}",
        "before": None if before is None else str(before),
    }


def traced(uri: str) -> dict[str, Any]:
    """A version, its run, the corpora the run read, and what these were made from."""
    with _registry(uri) as client:
        version = _version(client, uri)
        run = client.get_run(version.run_id) if version.run_id else None
        given = [i.dataset for i in run.inputs.dataset_inputs] if run else []
    tags = version.tags
    return {
        "name": version.name,
        "version": str(version.version),
        "weights_sha256": tags.get(WEIGHTS, ""),
        **{name.removeprefix("oneflow."): tags.get(name, "") for name in TAGS},
        "run": {"id": run.info.run_id if run else "", "name": run.info.run_name if run else ""},
        "corpora": [_corpus(dataset) for dataset in given],
    }


def _row(version: "ModelVersion", aliases: dict[str, str]) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(alias for alias, held in aliases.items() if str(held) == str(version.version)),
        "run_id": version.run_id or "",
        **{name.removeprefix("oneflow."): version.tags.get(name, "") for name in TAGS},
    }


def _corpus(dataset: Any) -> dict[str, Any]:
    """A run's dataset with the inputs that its manifest names; none of them where it cannot be read any more."""
    from oneflow_core.data.manifest import Manifest, ManifestError

    url = str(json.loads(dataset.source).get("uri", ""))
    try:
        inputs = [
            {"source": i.source, "name": i.name, "url": i.url, "sha256": i.sha256}
            for i in Manifest.load(url).inputs
        ]
    except (OSError, ManifestError):
        inputs = []
    return {"name": dataset.name, "version": dataset.digest, "url": url, "inputs": inputs}


def _version(client: "MlflowClient", uri: str) -> "ModelVersion":
    rest = uri.removeprefix("models:/")
    name, at, alias = rest.partition("@")
    if at and name and alias:
        return client.get_model_version_by_alias(name, alias)
    name, slash, number = rest.partition("/")
    if not (slash and name and number.isdigit()):
        raise UsageError(
            f"model {uri}", "no registered model", "write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    return client.get_model_version(name, number)


@contextmanager
def _registry(what: str) -> Iterator["MlflowClient"]:
    """The client of MLFLOW_TRACKING_URI; what it raises inside becomes a OneFlowError about `what`."""
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise OneFlowError(what, "MLFLOW_TRACKING_URI is not set", "oneflow stack up, or set it")
    try:
        yield client_of(uri)
    except MlflowException as error:
        raise OneFlowError(what, str(error), "oneflow models list names what there is") from error
