"""Starting from the weights of another model of ours: which they are, whether they fit this run, and loading them.

What a run starts from is decided once, before anything starts, and named by version and digest from then on: an alias
that moves later makes another run, never a mixture.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_core.data.manifest import Manifest
from oneflow_core.model import ModelConfig
from oneflow_core.model_directory import INDEX, ModelDirectoryError
from oneflow_core.model_source import ModelSourceError, local_directory
from oneflow_core.tokenizer import Tokenizer
from oneflow_core.weights import FileWeights, digest, weight_files
from workflows.errors import OneFlowError, UsageError
from workflows.serving.resolution import SCHEME, fetch_file, version_of
from workflows.storage import explained, join, open_fs
from workflows.training.config import ModelSettings, TrainConfig
from workflows.training.parallel import Worker, local

PARENT, PARENT_WEIGHTS = "oneflow.parent_model", "oneflow.parent_weights_sha256"
NETWORK, CONFIG_FILE = "model", "model/config.json"
FREE = ("clean_eps", "prompt_attention")
"""Fields of a network's config that a run may choose anew: no weight's meaning hangs on them."""


@dataclass(frozen=True, slots=True)
class Start:
    """A model that a run starts from: `source` is a version, a directory or a URL, never an alias."""

    source: str
    weights_sha256: str

    @property
    def tags(self) -> dict[str, str]:
        """What runs and model versions say of their parent."""
        return {PARENT: self.source, PARENT_WEIGHTS: self.weights_sha256}

    @property
    def key(self) -> list[str]:
        """What of it makes a run another run: a directory may be moved, a version is what it is."""
        named = [self.source] if self.source.startswith(SCHEME) else []
        return [*named, self.weights_sha256]


@dataclass(frozen=True)
class Needs:
    """What a run demands of the model that it starts from."""

    model: ModelConfig
    tokenizer: Tokenizer
    manifests: tuple[Manifest, ...]


def find_start(settings: ModelSettings, needs: Needs) -> Start | None:
    """The model that `settings` name, checked against `needs` unless version and digest are given already.

    Raises:
        UsageError: it does not fit, or its weights have another digest than the one that is given.
        OneFlowError: it is not there.
    """
    if settings.start is None:
        return None
    if settings.start_sha256 and not _moves(settings.start):
        return Start(settings.start, settings.start_sha256)
    source = _fixed(settings.start)
    start = Start(source, str(_read(source, INDEX)["model_sha256"]))
    if settings.start_sha256 not in (None, start.weights_sha256):
        cause = (
            f"its weights have sha256 {start.weights_sha256}, model.start_sha256 is {settings.start_sha256}"
        )
        raise UsageError(f"model.start {settings.start}", cause, "name the version that has these weights")
    check_fit(start, needs)
    return start


def pinned(config: TrainConfig, start: Start | None) -> TrainConfig:
    """`config` with its start named by version and digest."""
    if start is None:
        return config
    named = {"start": start.source, "start_sha256": start.weights_sha256}
    return config.model_copy(update={"model": config.model.model_copy(update=named)})


def agreed(config: TrainConfig, worker: Worker) -> TrainConfig:
    """`config` with its start as rank 0 finds it, so that an alias that moves meanwhile splits no run. All ranks."""
    if config.model.start is None or config.model.start_sha256:
        return config
    found: list[Any] = [None]
    if worker.leads:
        try:
            source = _fixed(config.model.start)
            found = [Start(source, str(_read(source, INDEX)["model_sha256"]))]
        except OneFlowError as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], OneFlowError):
        raise found[0]
    return pinned(config, found[0])


def check_fit(start: Start, needs: Needs) -> None:
    """Compare the model at `start` with what the run is made of.

    Raises:
        UsageError: they differ in what its weights hang on; the message names both, part by part.
    """
    index, theirs = _read(start.source, INDEX), _network(start.source)
    unlike = [
        f"model.dims.{name}: the run has {value!r}, the start {theirs.get(name)!r}"
        for name, value in needs.model.to_json().items()
        if name not in FREE and theirs.get(name) != value
    ]
    held: dict[str, tuple[set[str | None], str]] = {
        "tokenizer": ({needs.tokenizer.digest}, index["tokenizer_digest"]),
        "latent codec": ({m.codec for m in needs.manifests}, index["latent_codec_id"]),
        "understanding encoder": ({m.encoder for m in needs.manifests}, index["understanding_encoder_id"]),
    }
    for part, (ours, its) in held.items():
        unlike += [
            f"{part}: the run has {one}, the start {its}"
            for one in sorted(o for o in ours if o is not None and o != its)
        ]
    if unlike:
        mend = "give the run its dimensions, tokenizer, codec and encoder, or start from another model"
        raise UsageError(f"model.start {start.source}", "; ".join(unlike), mend)


def check_parent(start: Start | None, tags: Mapping[str, str]) -> None:
    """Whether a run with `tags` may go on from `start`; UsageError where it began with other weights."""
    began, goes_on = tags.get(PARENT_WEIGHTS), start.weights_sha256 if start else None
    if began != goes_on:
        cause = (
            f"the run began with weights of sha256 {began or 'none'}, the config names {goes_on or 'none'}"
        )
        mend = f"set model.start={tags[PARENT]}" if PARENT in tags else "leave model.start out"
        raise UsageError("model.start", cause, mend)


@torch.no_grad()
def load_start(model: nn.Module, start: Start) -> None:
    """Copy the weights of `start` into `model`, sharded or whole, in place; one tensor in memory at a time.

    Each rank reads the files by itself and keeps its own pieces: nothing is communicated, nothing unpickled.

    Raises:
        OneFlowError: the files are not there, or not those that the run began with.
        UsageError: its tensors are not those of `model`.
    """
    with _file(start.source, NETWORK) as folder, _explained(start.source):
        if (found := digest(weight_files(folder))) != start.weights_sha256:
            cause = f"its weights have sha256 {found}, the run starts from {start.weights_sha256}"
            raise OneFlowError(
                f"model.start {start.source}", cause, "put the files back, or begin another run"
            )
        _copy(model.state_dict(), FileWeights(folder), start)


def _copy(into: Mapping[str, Tensor], weights: FileWeights, start: Start) -> None:
    shapes = {name: kind.shape for name, kind in weights.kinds().items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in into.items()}
    if shapes != wanted:
        odd = min(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        cause = f"{odd}: the run has {wanted.get(odd, 'none')}, the start {shapes.get(odd, 'none')}"
        raise UsageError(f"model.start {start.source}", cause, "set model.dims like its own")
    for name, tensor in into.items():
        local(tensor).copy_(local(_like(weights.read(name), tensor)))


def _like(value: Tensor, model: Tensor) -> Tensor:
    """`value` sharded as `model` is, each rank cutting its own piece."""
    if isinstance(model, DTensor):
        return distribute_tensor(value, model.device_mesh, model.placements, src_data_rank=None)
    return value


def _moves(source: str) -> bool:
    """Whether `source` may mean something else tomorrow."""
    return source.startswith(SCHEME) and "@" in source


def _fixed(source: str) -> str:
    """`source` by version instead of alias, a directory by its whole path: workers may run elsewhere."""
    if not source.startswith(SCHEME):
        return str(Path(source).resolve()) if Path(source).is_dir() else source
    with _explained(source):
        name, version, _ = version_of(source)
    return f"{SCHEME}{name}/{version}"


def _network(source: str) -> dict[str, Any]:
    """The config of the network at `source`, with what this version adds to it at its default."""
    try:
        return ModelConfig.from_json(_read(source, CONFIG_FILE)).to_json()
    except (TypeError, ValueError) as error:
        raise UsageError(f"model.start {source}", str(error), "take a model of this version") from None


def _read(source: str, path: str) -> dict[str, Any]:
    with _file(source, path) as file, _explained(source):
        tree = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ModelDirectoryError(f"{path} is no JSON object")
        return tree


@contextmanager
def _file(source: str, path: str) -> Iterator[Path]:
    """One file or directory of the model at `source`, on this machine for as long as the context is open."""
    with tempfile.TemporaryDirectory(prefix="oneflow-start-") as scratch:
        into = Path(scratch)
        if source.startswith(SCHEME):
            with _explained(source):
                file = fetch_file(source, path, into)
            yield file
        elif "://" in source:
            filesystem, base = open_fs(source)
            with explained(join(source, path)):
                filesystem.get(join(base, path), str(into / "found"), recursive=True)
            yield into / "found"
        else:
            with _explained(source), local_directory(source) as (directory, _):
                file = directory / path
            yield file


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except (ModelSourceError, ModelDirectoryError, OSError, ValueError) as error:
        mend = "name a model: models:/NAME@ALIAS, models:/NAME/VERSION, a directory or a URL"
        raise OneFlowError(f"model.start {source}", str(error), mend) from error
