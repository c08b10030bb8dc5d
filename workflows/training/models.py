"""The registry as people see it: what there is, and which version an alias means."""

from typing import TYPE_CHECKING, Any

from workflows.errors import UsageError
from workflows.tracking_server import tracking_server
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
        before = dict(client.get_registered_model(version.name).aliases).get(alias)
        client.set_registered_model_alias(version.name, alias, version.version)
    return {
        "name": version.name,
        "version": str(version.version),
        "alias": alias,
        "uri": f"models:/{version.name}@{alias}",
        "before": None if before is None else str(before),
    }


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
