"""From the best weights of a run to a version of a registered model: plain files through MLflow, nothing pickled."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.config import digest
from workflows.errors import OneFlowError
from workflows.revision import git_commit
from workflows.tracking import client_of, find_run
from workflows.training.best import Best, load_best
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials
from workflows.training.worker import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from oneflow_core.model_directory import ModelParts

WEIGHTS = "oneflow.weights_sha256"
TAGS = ("oneflow.corpus_version", "oneflow.codec", "oneflow.config_digest", "oneflow.git_commit")


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
    best, _ = load_best(root)
    client = client_of(uri)
    version = _known(client, config.registry.name, best)
    if version is None:
        with tempfile.TemporaryDirectory(prefix="oneflow-export-") as directory:
            parts = export_parts(config, materials, root, run_id)
            tags = _tags(config, materials, parts, best, run_id)
            _save(parts, Path(directory) / "model")
            version = _upload(client, config, run_id, Path(directory) / "model", tags)
    client.set_registered_model_alias(config.registry.name, config.registry.alias, version)
    name, alias = config.registry.name, config.registry.alias
    return Registered(name, version, alias, f"models:/{name}@{alias}"), run_id


def export_parts(config: TrainConfig, materials: Materials, root: str, run_id: str | None) -> "ModelParts":
    """The best weights of the run at `root` with all that belongs to them.

    Raises:
        OneFlowError: there are no weights, or the codec or encoder is not the one of the corpus.
    """
    from oneflow_core.encoders.latent import LatentCodec
    from oneflow_core.encoders.understanding import UnderstandingEncoder
    from oneflow_core.model_directory import ModelDirectoryError, ModelParts

    best, weights = load_best(root)
    model = materials.build_model(config.seed)
    model.load_state_dict(weights)
    codec = LatentCodec.from_pretrained(config.registry.codec, subfolder=config.registry.codec_subfolder)
    encoder = UnderstandingEncoder.from_pretrained(config.registry.encoder)
    _same("registry.codec", codec.id, {m.codec for m in materials.manifests})
    _same("registry.encoder", encoder.id, {m.encoder for m in materials.manifests})
    notes = {
        "corpus_version": materials.corpus_version,
        "run_id": run_id or "",
        "steps": str(best.step),
        "heldout_loss": "" if best.loss is None else f"{best.loss:.4f}",
        "git_commit": git_commit(),
        "config_digest": digest(config),
    }
    try:
        size = config.registry.image_size
        sampler = {
            "schedule": best.schedule or config.objective.schedule,
            "length": config.objective.masked_length,
            **config.registry.sampler,
        }
        return ModelParts(model.eval(), materials.tokenizer, codec, encoder, size, sampler, notes)
    except ModelDirectoryError as error:
        raise OneFlowError("the trained model", str(error), "see registry and model.dims") from error


def _save(parts: "ModelParts", directory: Path) -> None:
    from oneflow_core.pipeline import OneFlowPipeline

    OneFlowPipeline(parts).save_pretrained(directory)


def _same(field: str, found: str, wanted: set[str | None]) -> None:
    if unlike := sorted(w for w in wanted if w is not None and w != found):
        mend = f"set {field} to it, or encode the corpus anew"
        raise OneFlowError(field, f"it is {found}, the corpus was encoded with {unlike[0]}", mend)


def _tags(
    config: TrainConfig, materials: Materials, parts: "ModelParts", best: Best, run_id: str | None
) -> dict[str, str]:
    values = (materials.corpus_version, parts.codec.id, digest(config), git_commit())
    parent = materials.start.tags if materials.start else {}
    tags = {**dict(zip(TAGS, values, strict=True)), WEIGHTS: best.sha256, "oneflow.run_id": run_id or ""}
    return tags | parent


def _known(client: "MlflowClient", name: str, best: Best) -> str | None:
    """The version that has these very weights, or None."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((str(v.version) for v in versions if v.tags.get(WEIGHTS) == best.sha256), None)


def _upload(
    client: "MlflowClient", config: TrainConfig, run_id: str | None, directory: Path, tags: Mapping[str, Any]
) -> str:
    """Put the directory's files through the tracking server and make a version of them."""
    from mlflow.exceptions import MlflowException

    name = str(config.registry.name)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(config.tracking.experiment)
    )
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    held = client.create_logged_model(experiment_id, name, run_id, tags=dict(tags), model_type="oneflow")
    client.log_model_artifacts(held.model_id, str(directory))
    client.finalize_logged_model(held.model_id, "READY")
    source = f"models:/{held.model_id}"
    version = client.create_model_version(name, source, run_id, tags=dict(tags), model_id=held.model_id)
    return str(version.version)
