"""From the best weights of a run to a version of a registered model: plain files through MLflow, nothing pickled."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from oneflow_core.model_directory import INDEX
from workflows.aliases import move
from workflows.storage import read_json
from workflows.tracking import COMMIT, RUN_KEY, client_of, find_run
from workflows.training.best import Best, read_best
from workflows.training.config import TrainConfig
from workflows.training.export import best_of, export_parts, write_model
from workflows.training.identity import CONFIG, EXPORTED, LOCK, PARENTS, WEIGHTS, made_of, version_tags
from workflows.training.materials import Materials
from workflows.training.notes import model_note, version_note
from workflows.training.worker import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from oneflow_core.model_directory import ModelParts

TAGS = (
    "oneflow.corpus_version",
    "oneflow.codec",
    "oneflow.config_digest",
    "oneflow.git_commit",
    "oneflow.objective",
    "oneflow.parameters",
    "oneflow.steps",
    "oneflow.heldout_loss",
    PARENTS[0],
)
"""What a list of versions tells of each."""
ON_THE_CARD = ("oneflow.objective", COMMIT, CONFIG, LOCK, *PARENTS)


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a registered model. `uri` names it by its alias."""

    name: str
    version: str
    alias: str
    uri: str


def export_and_register(
    config: TrainConfig, materials: Materials, key: str, root: str
) -> tuple[Registered | None, str | None]:
    """Register the best weights below `root`; returns the version and the MLflow run's id.

    Weights that are a version already get the alias and no second version. Without a tracking server or a name
    nothing is registered.

    Raises:
        OneFlowError: there are no weights, or the codec or encoder is not the one of the corpus.
    """
    uri = tracking_uri(config)
    run_id = find_run(uri, config.tracking.experiment, key) if uri else None
    if not uri or not config.registry.name:
        return None, run_id
    best = read_best(root)
    client = client_of(uri)
    version = _known(client, config.registry.name, best) if best else None
    if best is None or version is None:
        with tempfile.TemporaryDirectory(prefix="oneflow-export-") as directory:
            best, trained = best_of(root)
            parts = export_parts(config, materials, trained, run_id)
            tags = _tags(config, materials, parts, best, run_id)
            write_model(_with_card(parts, tags), trained.weights, Path(directory) / "model")
            version = _upload(client, config, run_id, Path(directory) / "model", tags)
    name, alias = config.registry.name, config.registry.alias
    move(client, name, alias, version, f"trained by run {run_id}")
    return Registered(name, version, alias, f"models:/{name}@{alias}"), run_id


def _with_card(parts: "ModelParts", tags: Mapping[str, str]) -> "ModelParts":
    """`parts` whose card names what the version's tags name beside."""
    told = {name.removeprefix("oneflow."): tags[name] for name in ON_THE_CARD if tags.get(name)}
    return replace(parts, notes={**parts.notes, **told})


def _tags(
    config: TrainConfig, materials: Materials, parts: "ModelParts", best: Best, run_id: str | None
) -> dict[str, str]:
    made = made_of(config, materials) | {
        "oneflow.codec": parts.codec.id,
        "oneflow.encoder": parts.encoder.id,
        "oneflow.steps": str(best.step),
        "oneflow.heldout_loss": "" if best.loss is None else f"{best.loss:.4f}",
        "oneflow.run_id": run_id or "",
        RUN_KEY: materials.run_key,
        WEIGHTS: best.sha256,
    }
    run = client_of(tracking_uri(config) or "").get_run(run_id).data.tags if run_id else {}
    return version_tags(made, run)


def _known(client: "MlflowClient", name: str, best: Best) -> str | None:
    """The version that has these very weights, or None."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((str(v.version) for v in versions if v.tags.get(WEIGHTS) == best.sha256), None)


def _upload(
    client: "MlflowClient", config: TrainConfig, run_id: str | None, directory: Path, tags: Mapping[str, str]
) -> str:
    """Put the directory's files through the tracking server and make a version of them."""
    from mlflow.exceptions import MlflowException

    name = str(config.registry.name)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(config.tracking.experiment)
    )
    try:
        client.create_registered_model(name, description=model_note(name, config.tracking.experiment))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**tags, EXPORTED: read_json(str(directory / INDEX))["model_sha256"]}
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    held = client.create_logged_model(experiment_id, name, run_id, tags=dict(tags), model_type="oneflow")
    client.log_model_artifacts(held.model_id, str(directory))
    client.finalize_logged_model(held.model_id, "READY")
    source = f"models:/{held.model_id}"
    version = client.create_model_version(name, source, run_id, tags=dict(tags), model_id=held.model_id)
    client.update_model_version(
        name, version.version, version_note(config, tags, f"{name}/{version.version}", size)
    )
    return str(version.version)
