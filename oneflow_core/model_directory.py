"""A model at rest: one directory that holds every part and says which parts belong together.

model_index.json   what the parts are, their ids, the size of images, the sampler's defaults
model/             config.json, model.safetensors (or several files with an index, above 2 GiB)
tokenizer/ latent_codec/ understanding_encoder/
README.md          the model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from oneflow_core.weights import (
    SHARD_BYTES,
    SINGLE,
    CastWeights,
    FileWeights,
    HeldWeights,
    Weights,
    digest,
    weight_files,
    write_weights,
)

if TYPE_CHECKING:
    from oneflow_core.encoders.latent import LatentCodec
    from oneflow_core.encoders.understanding import UnderstandingEncoder
    from oneflow_core.model import OneFlowModel
    from oneflow_core.tokenizer import Tokenizer

SCHEMA = 1
INDEX = "model_index.json"
CARD = "README.md"
CLASSES = {
    "model": ["oneflow_core.model", "OneFlowModel"],
    "tokenizer": ["oneflow_core.tokenizer", "Tokenizer"],
    "latent_codec": ["diffusers", "AutoencoderKL"],
    "understanding_encoder": ["transformers", "SiglipVisionModel"],
}


class ModelDirectoryError(ValueError):
    """A directory that is no model of ours, or whose parts do not belong together; the message names the part."""


@dataclass(frozen=True)
class ModelParts:
    """Everything that a model needs to read and to write documents."""

    model: OneFlowModel
    tokenizer: Tokenizer
    codec: LatentCodec
    encoder: UnderstandingEncoder
    image_size: int
    """Side in pixels of the images it reads and makes."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the sampler, by name."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What the card says beside: corpus version, run, metrics; plain words."""

    def __post_init__(self) -> None:
        config = self.model.config
        grain = self.codec.downsample * config.patch
        for holds, problem in (
            (
                self.tokenizer.vocab_size <= config.vocab_size,
                f"tokenizer: {self.tokenizer.vocab_size} tokens",
            ),
            (self.codec.channels == config.latent_channels, f"latent codec: {self.codec.channels} channels"),
            (self.encoder.dim == config.feature_dim, f"understanding encoder: width {self.encoder.dim}"),
            (self.image_size > 0 and self.image_size % grain == 0, f"image size {self.image_size}"),
        ):
            if not holds:
                raise ModelDirectoryError(
                    f"{problem} does not fit the network ({config.vocab_size} tokens, {config.latent_channels} "
                    f"channels, features of {config.feature_dim}, images in multiples of {grain}); "
                    "give the parts that it was trained with"
                )


def save(
    parts: ModelParts,
    directory: str | Path,
    weights: Weights | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes all parts, `model_index.json` last; returns the directory.

    `weights` are the network's, if `parts.model` has none of its own (is on the meta device); they are read one
    tensor at a time.

    Raises:
        ModelDirectoryError: the directory holds a model already, or the weights are not the network's.
    """
    root = Path(directory)
    if (root / INDEX).exists():
        raise ModelDirectoryError(f"{root} holds a model already; name an empty directory")
    weights = weights or HeldWeights(parts.model.state_dict())
    _fit(parts.model, weights)
    (root / "model").mkdir(parents=True, exist_ok=True)
    sha256 = write_weights(root / "model", weights, shard_bytes)
    _write_json(root / "model" / "config.json", parts.model.config.to_json())
    parts.tokenizer.save_pretrained(root / "tokenizer")
    parts.codec.save_pretrained(root / "latent_codec")
    parts.encoder.save_pretrained(root / "understanding_encoder")
    index = _index(parts, sha256)
    (root / CARD).write_text(card(index, parts), encoding="utf-8")
    _write_json(root / INDEX, index)
    return root


def copy(
    directory: Path, out: str | Path, dtype: torch.dtype = torch.float32, *, shard_bytes: int = SHARD_BYTES
) -> tuple[ModelParts, str]:
    """What `load` and `save` would do with weights in `dtype`, but without ever holding all of them.

    Returns the parts, with a network that has no values, and the version of what was read.

    Raises:
        ModelDirectoryError: as `load` and `save`.
    """
    index = _checked_index(directory)
    model = _network(directory / "model", "meta")
    _check_bytes(directory / "model", index)
    parts = _with_others(model, directory, index, "cpu")
    save(parts, out, CastWeights(FileWeights(directory / "model"), dtype), shard_bytes=shard_bytes)
    return parts, str(index["model_sha256"])[:12]


def load(directory: Path, *, device: str | torch.device, dtype: torch.dtype) -> tuple[ModelParts, str]:
    """Reads what `save` wrote, and a version: 12 hex digits of the weights' digest. Nothing is unpickled.

    Raises:
        ModelDirectoryError: a part is missing, cannot be read, or is not the one that the model was trained with.
    """
    index = _checked_index(directory)
    model = _load_network(directory / "model", index).to(device=device, dtype=dtype)
    return _with_others(model, directory, index, device), str(index["model_sha256"])[:12]


def _checked_index(directory: Path) -> dict[str, Any]:
    index = _read_json(directory / INDEX, "there is no model here; name what save_pretrained wrote")
    if index.get("schema") != SCHEMA:
        raise ModelDirectoryError(
            f"{directory / INDEX}: schema {index.get('schema')!r} is not {SCHEMA}; save the model with this version"
        )
    for name in CLASSES:
        if not (directory / name).is_dir():
            raise ModelDirectoryError(f"{directory}: the part {name}/ is missing; copy the whole directory")
    return index


def _with_others(
    model: OneFlowModel, directory: Path, index: Mapping[str, Any], device: str | torch.device
) -> ModelParts:
    """The parts that are not the network, checked to be the ones it was trained with."""
    from oneflow_core.encoders.latent import LatentCodec
    from oneflow_core.encoders.understanding import UnderstandingEncoder
    from oneflow_core.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_pretrained(str(directory / "tokenizer"))
        codec = LatentCodec.from_pretrained(directory / "latent_codec", device=device)
        encoder = UnderstandingEncoder.from_pretrained(directory / "understanding_encoder", device=device)
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{directory}: {error}") from error
    _same("tokenizer", tokenizer.digest, index["tokenizer_digest"])
    _same("latent_codec", codec.id, index["latent_codec_id"])
    _same("understanding_encoder", encoder.id, index["understanding_encoder_id"])
    size, sampler, notes = index["image_size"], index.get("sampler", {}), index.get("notes", {})
    return ModelParts(model, tokenizer, codec, encoder, size, sampler, notes)


def card(index: Mapping[str, Any], parts: ModelParts) -> str:
    """The model card: what it is, what it was made from, how to use it."""
    config = parts.model.config
    count = sum(p.numel() for p in parts.model.parameters())
    facts = {
        "Parameters": f"{count:,} ({config.layers} layers of width {config.width})",
        "Images": f"{parts.image_size} x {parts.image_size} pixels",
        "Tokenizer": f"{index['tokenizer_digest'][:12]}, {parts.tokenizer.vocab_size} tokens",
        "Latent codec": index["latent_codec_id"],
        "Understanding encoder": index["understanding_encoder_id"],
        "Weights": f"sha256 {index['model_sha256']}",
        **parts.notes,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: oneflow
pipeline_tag: any-to-any
license: apache-2.0
---
# A OneFlow model

Reads and writes documents of text and images: text grows by insertion, images by flow matching, both at once.

| | |
|---|---|
{rows}

```python
from oneflow_core.pipeline import OneFlowPipeline, Prompt

pipeline = OneFlowPipeline.from_pretrained("this directory")
(document,) = pipeline([Prompt(("a large red circle",), target="image")])
document.segments[0].save("circle.png")
```

```
oneflow generate DIRECTORY --prompt "a large red circle"
oneflow evaluate DIRECTORY
oneflow serve DIRECTORY
```

It knows what its corpus showed and nothing else. Nothing it makes has been filtered.
"""


def _index(parts: ModelParts, weights_sha256: str) -> dict[str, Any]:
    return {
        "_class_name": "OneFlowPipeline",
        "schema": SCHEMA,
        **CLASSES,
        "image_size": parts.image_size,
        "tokenizer_digest": parts.tokenizer.digest,
        "latent_codec_id": parts.codec.id,
        "understanding_encoder_id": parts.encoder.id,
        "model_sha256": weights_sha256,
        "sampler": dict(parts.sampler),
        "notes": dict(parts.notes),
    }


def _load_network(directory: Path, index: Mapping[str, Any]) -> OneFlowModel:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = _network(directory, "cpu")
    _check_bytes(directory, index)
    try:
        missing = set(model.state_dict())
        for path in weight_files(directory):
            held = load_file(path)
            if unknown := model.load_state_dict(held, strict=False).unexpected_keys:
                raise ValueError(f"the network has no {unknown[0]}")
            missing -= set(held)
        if missing:
            raise ValueError(f"{min(missing)} is missing")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelDirectoryError(f"{directory / SINGLE}: {error}; copy the whole directory again") from error
    return model.eval().requires_grad_(False)


def _network(directory: Path, device: str) -> OneFlowModel:
    from oneflow_core.model import ModelConfig, OneFlowModel

    config = _read_json(directory / "config.json", "copy the whole directory")
    try:
        with torch.device(device):
            return OneFlowModel(ModelConfig.from_json(config))
    except (TypeError, ValueError) as error:
        raise ModelDirectoryError(
            f"{directory / 'config.json'}: {error}; copy the whole directory again"
        ) from error


def _check_bytes(directory: Path, index: Mapping[str, Any]) -> None:
    try:
        whole = digest(weight_files(directory)) == index["model_sha256"]
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{directory / SINGLE}: {error}; copy the whole directory again") from error
    if not whole:
        raise ModelDirectoryError(
            f"{directory / SINGLE}: not the bytes that {INDEX} names; copy the directory again"
        )


def _fit(model: OneFlowModel, weights: Weights) -> None:
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: kind.shape for name, kind in weights.kinds().items()}
    if unlike := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
        name = unlike[0]
        raise ModelDirectoryError(
            f"weights: {name} is {found.get(name)}, in the network {wanted.get(name)}; give those of this network"
        )


def _same(part: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelDirectoryError(
            f"{part}: here lies {found}, but the model was trained with {wanted}; put that one there"
        )


def _read_json(path: Path, mend: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelDirectoryError(f"{path}: {error.strerror}; {mend}") from error
    except ValueError as error:
        raise ModelDirectoryError(f"{path}: not JSON ({error}); {mend}") from error
    if not isinstance(value, dict):
        raise ModelDirectoryError(f"{path}: not a JSON object; {mend}")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
