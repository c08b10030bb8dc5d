"""The registry as people see it: what there is, and which version an alias means."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from workflows import aliases
from workflows.errors import OneFlowError, UsageError
from workflows.tracking import RUN_KEY
from workflows.tracking_server import tracking_server
from workflows.training.config import TrainConfig
from workflows.training.register import TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MEND = "oneflow models list names what there is"


def listed() -> list[dict[str, Any]]:
    """Versions of all registered models, by name and newest first."""
    with tracking_server("the registered models", MEND) as client:
        models = {m.name: m for m in client.search_registered_models()}
        rows = [_row(v, models[v.name].aliases) for v in client.search_model_versions() if v.name in models]
    return sorted(rows, key=lambda row: (row["name"], -int(row["version"])))


def promoted(uri: str, alias: str) -> dict[str, Any]:
    """Point `alias` at the version that `uri` means; returns it and the version that had the alias before."""
    with tracking_server(uri, MEND) as client:
        version = version_of(client, uri)
        return _told(aliases.move(client, version.name, alias, str(version.version), "promoted by hand"))


def rolled_back(uri: str, alias: str) -> dict[str, Any]:
    """Point `alias` of models:/NAME at the version that held it before; returns as `promoted`.

    Raises:
        Refused: no earlier holder is known.
        UsageError: `uri` is not models:/NAME.
    """
    name = uri.removeprefix("models:/")
    if not name or "/" in name or "@" in name or name == uri:
        raise UsageError(f"model {uri}", "no registered model", "write models:/NAME, and --alias ALIAS")
    with tracking_server(uri, MEND) as client:
        return _told(aliases.roll_back(client, name, alias))


def _told(moved: aliases.Moved) -> dict[str, Any]:
    return asdict(moved) | {"uri": moved.uri, "before": moved.before or None}


def exported_run(run_id: str, out: Path, step: int | None, raw: bool) -> dict[str, str]:
    """Write the weights of a committed checkpoint of an MLflow run as a model into `out`; returns what it is.

    Raises:
        OneFlowError: the run, its checkpoint or its corpus is not there, or `out` holds a model.
    """
    from workflows.training.export import checkpoint_of, export
    from workflows.training.materials import gather
    from workflows.training.worker import run_root

    with (
        tracking_server(f"run {run_id}", "name a run of oneflow train") as client,
        TemporaryDirectory(prefix="oneflow-run-") as directory,
    ):
        key = client.get_run(run_id).data.tags.get(RUN_KEY)
        if not key:
            raise OneFlowError(f"run {run_id}", f"it has no tag {RUN_KEY}", "name a run of oneflow train")
        told = Path(client.download_artifacts(run_id, "config.json", directory)).read_text()
    config = TrainConfig.model_validate_json(told)
    materials = gather(config)
    trained = checkpoint_of(run_root(config, key), materials, step, raw=raw)
    export(config, materials, trained, run_id, out)
    name = f"{key}@{trained.step}{'-raw' if raw else ''}"
    return {"name": f"runs:/{run_id}", "version": name, "run_id": run_id}


def _row(version: "ModelVersion", aliases: dict[str, str]) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(alias for alias, held in aliases.items() if str(held) == str(version.version)),
        "run_id": version.run_id or "",
        **{name.removeprefix("oneflow."): version.tags.get(name, "") for name in TAGS},
    }


def version_of(client: "MlflowClient", uri: str) -> "ModelVersion":
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION means; UsageError where it is neither form."""
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
