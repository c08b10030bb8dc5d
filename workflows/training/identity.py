"""What a run and a model version say of where they come from: tags in MLflow, and how they are read back."""

import getpass
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch

from oneflow_core.data.manifest import Manifest
from oneflow_core.model import OneFlowModel
from workflows.config import digest
from workflows.revision import DIRTY, git_commit, lock_digest
from workflows.tracking import COMMIT, RUN_KEY
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials

CORPORA = "oneflow.corpora"
"""JSON: name, version, URL and manifest digest of every corpus."""
MANIFESTS = "oneflow.manifest_sha256"
"""Those digests alone, in the order of oneflow.corpus_version: to search for."""
LOCK = "oneflow.lock_sha256"
CONFIG = "oneflow.config_digest"
"""Of the config that trained, whose device is decided."""
PARENTS = ("oneflow.parent_model", "oneflow.parent_weights_sha256")
"""Set on the run of a stage that starts from a registered model: models:/NAME/VERSION or a URL, and its weights."""
WEIGHTS = "oneflow.weights_sha256"
EXPORTED = "oneflow.model_sha256"
"""Of model/model.safetensors in the version's directory."""


@dataclass(frozen=True, slots=True)
class CorpusRef:
    """A corpus as a run read it; `manifest_sha256` is the digest that its manifest holds of itself."""

    name: str
    version: str
    url: str
    manifest_sha256: str

    @classmethod
    def of(cls, manifest: Manifest) -> "CorpusRef":
        """The reference to `manifest`."""
        return cls(manifest.name, manifest.version, manifest.base, str(manifest.to_json()["digest"]))


def made_of(config: TrainConfig, materials: Materials) -> dict[str, str]:
    """What a run of `config`, and every version that comes of it, is made of: code, packages, data, encoders."""
    lock, lock_of = lock_digest()
    refs = [CorpusRef.of(manifest) for manifest in materials.manifests]
    return {
        COMMIT: git_commit(),
        LOCK: lock,
        "oneflow.lock_of": lock_of,
        CONFIG: digest(config),
        "oneflow.corpus_version": materials.corpus_version,
        CORPORA: json.dumps([asdict(ref) for ref in refs]),
        MANIFESTS: "+".join(ref.manifest_sha256 for ref in refs),
        "oneflow.codec": _first(m.codec for m in materials.manifests),
        "oneflow.encoder": _first(m.encoder for m in materials.manifests),
        "oneflow.tokenizer": materials.tokenizer.digest,
        **(materials.start.tags if materials.start else {}),
        "oneflow.objective": config.objective.kind,
        "oneflow.parameters": str(_parameters(materials)),
    }


def run_tags(config: TrainConfig, materials: Materials, device: str) -> dict[str, str]:
    """`made_of` and where it runs. A run that goes on elsewhere tells of its newest attempt."""
    where = {"torch": torch.__version__, "device": device}
    made = made_of(config, materials)
    return {**made, **{f"oneflow.{name}": value for name, value in where.items()}, **_shown(made[COMMIT])}


def _shown(commit: str) -> dict[str, str]:
    """Where MLflow's pages look for the program, its commit and its user."""
    tags = {
        "source.name": "oneflow train",
        "source.type": "LOCAL",
        "source.git.commit": commit.removesuffix(DIRTY),
    }
    with suppress(OSError, KeyError):
        tags["user"] = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    return {f"mlflow.{name}": value for name, value in tags.items()}


def version_tags(made: Mapping[str, str], run: Mapping[str, str]) -> dict[str, str]:
    """Tags of a model version: `made` where it is registered, under what the tags of its run say of code and parents.

    Who registers a model need not be who trained it.
    """
    carried = (RUN_KEY, COMMIT, CONFIG, LOCK, "oneflow.lock_of", CORPORA, MANIFESTS, *PARENTS)
    return {**made, **{name: run[name] for name in carried if run.get(name)}}


def config_path(config_digest: str) -> str:
    """The artifact of a run that keeps the config of one attempt, whatever config goes on with the run later."""
    return f"configs/{config_digest[:12]}.json"


def corpora_of(tags: Mapping[str, str]) -> tuple[CorpusRef, ...]:
    """The corpora that a run or a version names; none where it was registered before they were kept."""
    return tuple(CorpusRef(**entry) for entry in json.loads(tags.get(CORPORA) or "[]"))


def _parameters(materials: Materials) -> int:
    """Counted without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in OneFlowModel(materials.model_config).parameters())


def _first(ids: Iterable[str | None]) -> str:
    """Corpora of one run share their encoders; one of text alone names none."""
    return next((found for found in ids if found), "")
