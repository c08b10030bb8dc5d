"""From a run's storage to a model's directory: its weights read one by one, with all that belongs to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oneflow_core.model import OneFlowModel
from oneflow_core.weights import Weights
from workflows.config import digest
from workflows.errors import OneFlowError
from workflows.revision import git_commit
from workflows.storage import join, read_json
from workflows.training.best import Best, load_best
from workflows.training.commit import Commit, CommitError, commit_name
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials
from workflows.training.pace import Pace
from workflows.training.parallel import Worker
from workflows.training.retention import committed_steps
from workflows.training.tensor_files import StoredTensors, check

if TYPE_CHECKING:
    from oneflow_core.model_directory import ModelParts


@dataclass(frozen=True)
class Trained:
    """Weights of a run, and what is known of them."""

    step: int
    weights: Weights
    schedule: str | None
    """Name of the kappa that they were last trained under."""
    loss: float | None = None
    """Held-out loss, where it was taken."""


def best_of(root: str) -> tuple[Best, Trained]:
    """The best weights of the run at `root`; OneFlowError when there are none or they are damaged."""
    best, weights = load_best(root)
    return best, Trained(best.step, weights, best.schedule, best.loss)


def checkpoint_of(root: str, materials: Materials, step: int | None = None, *, raw: bool = False) -> Trained:
    """The averaged weights of the committed checkpoint of `step`, or of the newest; with `raw` those that are trained.

    Raises:
        OneFlowError: there is no such checkpoint, or it is damaged.
    """
    steps = committed_steps(root)
    if not steps or (step is not None and step not in steps):
        known = f"committed: {', '.join(map(str, steps)) or 'none'}"
        raise OneFlowError(f"checkpoint of step {step} at {root}", "there is none", known)
    url = join(root, "commits", commit_name(steps[0] if step is None else step))
    try:
        commit = Commit.from_json(read_json(url))
    except CommitError as error:
        raise OneFlowError(url, str(error), "name another step") from None
    if wrong := check(root, commit, commit.files):
        raise OneFlowError(url, wrong, "name another step")
    pace = Pace(materials.objective.config, Worker(0, 1, torch.device("cpu")))
    pace.load_state(commit.state.get("schedule", {}))
    schedule = pace.name_at(max(commit.step - 1, 0))
    return Trained(commit.step, StoredTensors(root, commit, "model." if raw else "ema."), schedule)


def export(
    config: TrainConfig, materials: Materials, trained: Trained, run_id: str | None, directory: Path
) -> None:
    """Write `trained` with tokenizer and encoders into `directory`; in memory are these and a tensor at a time.

    Raises:
        OneFlowError: the codec or encoder is not the one of the corpus, or the parts do not fit.
    """
    write_model(export_parts(config, materials, trained, run_id), trained.weights, directory)


def write_model(parts: "ModelParts", weights: Weights, directory: Path) -> None:
    """Write `parts`, whose network has no values, with `weights`; OneFlowError where these are not the network's."""
    from oneflow_core.model_directory import ModelDirectoryError, save

    try:
        save(parts, directory, weights)
    except ModelDirectoryError as error:
        raise OneFlowError("the trained model", str(error), "see registry and model.dims") from error


def export_parts(
    config: TrainConfig, materials: Materials, trained: Trained, run_id: str | None
) -> "ModelParts":
    """What belongs to `trained`; the network has no values.

    Raises:
        OneFlowError: the codec or encoder is not the one of the corpus, or the parts do not fit.
    """
    from oneflow_core.encoders.latent import LatentCodec
    from oneflow_core.encoders.understanding import UnderstandingEncoder
    from oneflow_core.model_directory import ModelDirectoryError, ModelParts

    codec = LatentCodec.from_pretrained(config.registry.codec, subfolder=config.registry.codec_subfolder)
    encoder = UnderstandingEncoder.from_pretrained(config.registry.encoder)
    _same("registry.codec", codec.id, {m.codec for m in materials.manifests})
    _same("registry.encoder", encoder.id, {m.encoder for m in materials.manifests})
    with torch.device("meta"):
        model = OneFlowModel(materials.model_config).eval()
    notes = {
        "corpus_version": materials.corpus_version,
        "run_id": run_id or "",
        "steps": str(trained.step),
        "heldout_loss": "" if trained.loss is None else f"{trained.loss:.4f}",
        "git_commit": git_commit(),
        "config_digest": digest(config),
    }
    try:
        size = config.registry.image_size
        sampler = {
            "schedule": trained.schedule or config.objective.schedule,
            "length": config.objective.masked_length,
            **config.registry.sampler,
        }
        return ModelParts(model, materials.tokenizer, codec, encoder, size, sampler, notes)
    except ModelDirectoryError as error:
        raise OneFlowError("the trained model", str(error), "see registry and model.dims") from error


def _same(field: str, found: str, wanted: set[str | None]) -> None:
    if unlike := sorted(w for w in wanted if w is not None and w != found):
        mend = f"set {field} to it, or encode the corpus anew"
        raise OneFlowError(field, f"it is {found}, the corpus was encoded with {unlike[0]}", mend)
