"""The commit of a checkpoint: the one object whose being there makes the checkpoint be there.

It says which files the checkpoint has, with digests, where each piece of each tensor lies, and holds all state
that is not tensors (step, loader, time). It is JSON, and the files are safetensors: nothing is pickled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

SCHEMA = 1
NAME = re.compile(r"step-(\d{9})\.json$")


class CommitError(ValueError):
    """An object that is no commit of this version."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint, by its name in the checkpoint's directory."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor: where it begins, how large it is, and the file that holds it under `chunk_key`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A whole tensor and its chunks."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """A checkpoint. `directory` is where its files lie, relative to the root of all checkpoints."""

    step: int
    directory: str
    files: tuple[StoredFile, ...]
    tensors: Mapping[str, StoredTensor]
    state: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` reads it back equal."""
        tensors = {
            name: [t.dtype, list(t.shape), [[list(c.offsets), list(c.sizes), c.file] for c in t.chunks]]
            for name, t in self.tensors.items()
        }
        return {
            "schema": SCHEMA,
            "step": self.step,
            "directory": self.directory,
            "files": [[f.name, f.bytes, f.sha256] for f in self.files],
            "tensors": tensors,
            "state": dict(self.state),
        }

    @classmethod
    def from_json(cls, tree: Any) -> "Commit":
        """Reads what `to_json` wrote; CommitError when it is something else."""
        try:
            if tree["schema"] != SCHEMA:
                raise CommitError(f"schema {tree['schema']!r} is not {SCHEMA}")
            files = tuple(StoredFile(str(n), int(b), str(s)) for n, b, s in tree["files"])
            tensors = {str(name): _tensor(*parts) for name, parts in tree["tensors"].items()}
            return cls(int(tree["step"]), str(tree["directory"]), files, tensors, dict(tree["state"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CommitError(f"not a commit: {error!r}") from None

    def metadata(self) -> Metadata:
        """What torch.distributed.checkpoint plans its reads with."""
        held = {name: _described(tensor) for name, tensor in self.tensors.items()}
        places = {
            MetadataIndex(name, chunk.offsets): chunk.file
            for name, tensor in self.tensors.items()
            for chunk in tensor.chunks
        }
        return Metadata(state_dict_metadata=held, storage_data=places)  # type: ignore[arg-type]


def chunk_key(name: str, offsets: tuple[int, ...] | torch.Size) -> str:
    """Under which name a file holds the chunk of tensor `name` that begins at `offsets`."""
    return f"{name}@{','.join(str(o) for o in offsets)}"


def commit_name(step: int) -> str:
    """Name of the commit object of `step`: names sort as steps do."""
    return f"step-{step:09d}.json"


def stored_tensors(metadata: Metadata, places: Mapping[MetadataIndex, str]) -> dict[str, StoredTensor]:
    """The tensors of a plan that was carried out; `places` names the file of every chunk written."""
    tensors = {}
    for name, held in metadata.state_dict_metadata.items():
        if not isinstance(held, TensorStorageMetadata):
            raise TypeError(f"{name} is no tensor; put it into the commit's state")
        chunks = (
            Chunk(tuple(c.offsets), tuple(c.sizes), places[MetadataIndex(name, c.offsets)])
            for c in held.chunks
        )
        dtype = str(held.properties.dtype).removeprefix("torch.")
        tensors[name] = StoredTensor(dtype, tuple(held.size), tuple(chunks))
    return tensors


def _tensor(dtype: str, shape: list[int], chunks: list[Any]) -> StoredTensor:
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise CommitError(f"{dtype!r} is no dtype")
    return StoredTensor(dtype, tuple(shape), tuple(Chunk(tuple(o), tuple(s), str(f)) for o, s, f in chunks))


def _described(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in tensor.chunks]
    properties = TensorProperties(dtype=getattr(torch, tensor.dtype))
    return TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
