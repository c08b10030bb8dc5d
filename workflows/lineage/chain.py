"""The links from a model version back: run, checkpoint, corpora, their sources, and the model that it starts from.

Every link names the next by a digest. What is gone is a link that says so; nothing here fails because of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.errors import OneFlowError
from workflows.lineage.corpus import CorpusLink, corpus_link
from workflows.storage import join, read_json
from workflows.tracking import ATTEMPT, COMMIT, RUN_KEY
from workflows.training.identity import (
    CORPORA,
    EXPORTED,
    PARENTS,
    WEIGHTS,
    CorpusRef,
    corpora_of,
)
from workflows.training.models import version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SCHEME = "models:/"
FACTS = (
    "corpus_version",
    "codec",
    "encoder",
    "tokenizer",
    "objective",
    "parameters",
    "lock_sha256",
    "config_digest",
)
DEEPEST = 16
"""Models that are followed one behind the other."""


@dataclass(frozen=True, slots=True)
class RunLink:
    """The run that trained a version; `gone` says why no more than its id is known."""

    id: str
    name: str = ""
    experiment: str = ""
    status: str = ""
    key: str = ""
    attempts: int = 0
    gone: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ModelLink:
    """A model: a version of a registered one, or a directory at `url`. `tags` are the run's under the version's."""

    uri: str
    name: str
    version: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run: RunLink | None
    corpora: tuple[CorpusLink, ...]
    parent: "ModelLink | None" = None
    gone: str = ""

    def to_json(self, *, files: bool = False) -> dict[str, Any]:
        """What `oneflow models lineage --json` prints; with `files` every input of every corpus."""
        return {
            "uri": self.uri,
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "gone": self.gone,
            "weights_sha256": self.tags.get(WEIGHTS, ""),
            "model_sha256": self.tags.get(EXPORTED, ""),
            **{name: self.tags.get(f"oneflow.{name}", "") for name in FACTS},
            "git_commit": self.tags.get(COMMIT, ""),
            "checkpoint": {name: self.tags.get(f"oneflow.{name}", "") for name in ("steps", "heldout_loss")},
            "run": self.run.to_json() if self.run else RunLink("").to_json(),
            "corpora": [corpus.to_json(files=files) for corpus in self.corpora],
            "parent": self.parent.to_json(files=files) if self.parent else None,
        }


def trace(client: "MlflowClient", uri: str, depth: int = 0) -> ModelLink:
    """The links behind the registered model `uri`.

    Raises:
        UsageError: `uri` names no registered model.
        MlflowException: there is none of that name, version or alias.
    """
    version = version_of(client, uri)
    run = _run(client, version.run_id) if version.run_id else None
    tags = {**(run.data.tags if run else {}), **version.tags}
    link = (
        _run_link(client, run) if run else RunLink(version.run_id, gone="deleted") if version.run_id else None
    )
    aliases = client.get_registered_model(version.name).aliases
    return ModelLink(
        uri=f"{SCHEME}{version.name}/{version.version}",
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(a for a, held in aliases.items() if str(held) == str(version.version))),
        tags=tags,
        run=link,
        corpora=tuple(corpus_link(ref) for ref in _corpora(tags, run)),
        parent=_parent(client, tags, depth),
    )


def _parent(client: "MlflowClient", tags: Mapping[str, str], depth: int) -> ModelLink | None:
    from mlflow.exceptions import MlflowException

    uri = tags.get(PARENTS[0], "")
    if not uri:
        return None
    if depth >= DEEPEST:
        return _gone(uri, f"more than {DEEPEST} models behind each other")
    if not uri.startswith(SCHEME):
        return _directory(uri)
    try:
        return trace(client, uri, depth + 1)
    except MlflowException as error:
        return _gone(uri, " ".join(str(error).split())[:200])


def _directory(url: str) -> ModelLink:
    """A model outside the registry: its index tells what it was made from, as far as it was told itself."""
    try:
        index = read_json(join(url, "model_index.json"))
    except OneFlowError as error:
        return _gone(url, error.cause)
    notes = {f"oneflow.{name}": str(value) for name, value in index.get("notes", {}).items()}
    ids = {
        "oneflow.codec": index.get("latent_codec_id", ""),
        "oneflow.encoder": index.get("understanding_encoder_id", ""),
    }
    tags = {**notes, **ids, EXPORTED: index.get("model_sha256", "")}
    return ModelLink(url, "", "", (), tags, None, ())


def _gone(uri: str, why: str) -> ModelLink:
    return ModelLink(uri, "", "", (), {}, None, (), gone=why)


def _run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _run_link(client: "MlflowClient", run: "Run") -> RunLink:
    info, tags = run.info, run.data.tags
    experiment = client.get_experiment(info.experiment_id).name
    gone = "" if info.lifecycle_stage == "active" else f"marked as {info.lifecycle_stage}"
    attempts = int(tags.get(ATTEMPT, "1"))
    return RunLink(
        info.run_id, info.run_name or "", experiment, info.status, tags.get(RUN_KEY, ""), attempts, gone
    )


def _corpora(tags: Mapping[str, str], run: "Run | None") -> tuple[CorpusRef, ...]:
    """By the tag, or by the run's inputs where it was registered before the tag was kept."""
    if CORPORA in tags or run is None:
        return corpora_of(tags)
    found = []
    for entry in run.inputs.dataset_inputs:
        url = str(json.loads(entry.dataset.source).get("uri", "")).removesuffix("/manifest.json")
        found.append(CorpusRef(entry.dataset.name, entry.dataset.digest, url, ""))
    return tuple(found)
