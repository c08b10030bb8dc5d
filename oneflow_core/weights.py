"""Weights tensor by tensor: where they come from, and their files in Hugging Face's layout.

What fits lies in one file, model.safetensors; more in several, model-00001-of-00003.safetensors, with an index that
says which tensor is in which. Neither writing nor copying holds more than one tensor in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from oneflow_core.safetensors_layout import Kind, LayoutError, Place, lay_out, read_places

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
"""Largest file, unless one tensor is larger."""
BLOCK = 1 << 24


class Weights(Protocol):
    """Named tensors that need not be in memory."""

    def kinds(self) -> Mapping[str, Kind]:
        """Dtype and shape of each."""
        ...

    def read(self, name: str) -> Tensor:
        """One of them, whole, on the CPU."""
        ...


@dataclass(frozen=True)
class HeldWeights:
    """Those of a state dict."""

    tensors: Mapping[str, Tensor]

    def kinds(self) -> Mapping[str, Kind]:
        """Dtype and shape of each."""
        return {name: Kind(t.dtype, tuple(t.shape)) for name, t in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """One of them, whole, on the CPU."""
        return self.tensors[name].detach().cpu()


@dataclass(frozen=True)
class CastWeights:
    """Others, their floating-point tensors in `dtype`."""

    weights: Weights
    dtype: torch.dtype

    def kinds(self) -> Mapping[str, Kind]:
        """Dtype and shape of each."""
        kinds = self.weights.kinds()
        return {n: replace(k, dtype=self.dtype) if k.dtype.is_floating_point else k for n, k in kinds.items()}

    def read(self, name: str) -> Tensor:
        """One of them, whole, on the CPU."""
        tensor = self.weights.read(name)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


class FileWeights:
    """Those of the files in `directory`; LayoutError where one is no safetensors file."""

    def __init__(self, directory: Path) -> None:
        self._places: dict[str, tuple[Path, Place]] = {}
        for path in weight_files(directory):
            with path.open("rb") as file:
                places = read_places(lambda a, b, file=file: file.read(b - a))  # type: ignore[misc]
            self._places |= {name: (path, place) for name, place in places.items()}

    def kinds(self) -> Mapping[str, Kind]:
        """Dtype and shape of each."""
        return {name: place.kind for name, (_, place) in self._places.items()}

    def read(self, name: str) -> Tensor:
        """One of them, whole, on the CPU."""
        path, place = self._places[name]
        data = torch.empty(place.kind.bytes, dtype=torch.uint8)
        with path.open("rb") as file:
            file.seek(place.begin)
            if file.readinto(data.numpy().data) != place.kind.bytes:
                raise LayoutError(f"{path}: ends within {name}")
        return data.view(place.kind.dtype).view(place.kind.shape)


def write_weights(directory: Path, weights: Weights, shard_bytes: int = SHARD_BYTES) -> str:
    """Write the files, the index last; returns their `digest`, taken on the way."""
    kinds, digest = weights.kinds(), hashlib.sha256()
    shards = _shards(kinds, shard_bytes)
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for file, held in zip(names, shards, strict=True):
        head, places = lay_out({name: kinds[name] for name in held}, {"format": "pt"})
        with (directory / file).open("xb") as stream:
            stream.write(head)
            digest.update(head)
            for name in places:
                values = weights.read(name).contiguous().reshape(-1).view(torch.uint8).numpy().data
                stream.write(values)
                digest.update(values)
    if len(shards) > 1:
        total = sum(kind.bytes for kind in kinds.values())
        where = {name: file for file, held in zip(names, shards, strict=True) for name in held}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The files in `directory`, in order: those of the index where there is one.

    Raises:
        ValueError: the index is none.
    """
    if not (directory / INDEX).is_file():
        return [directory / SINGLE]
    try:
        named = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index: {error!r}") from None
    return [directory / Path(name).name for name in sorted(set(named))]


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of the bytes of `files`, one after the other; of a single file it is the file's own."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                found.update(block)
    return found.hexdigest()


def _shards(kinds: Mapping[str, Kind], shard_bytes: int) -> list[list[str]]:
    """Names by file, in order."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, kind in kinds.items():
        if shards[-1] and kind.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= kind.bytes
    return shards
