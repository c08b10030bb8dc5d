"""Who an encoder is: where its files lie, and an id that changes when its numbers do."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

EMBEDDED = "embedded"
ASSETS = Path(__file__).resolve().parent.parent / "assets"
NAME_FILE = "encoder.json"
"""Beside the weights: the name that the id carries, so that a saved copy keeps its id."""


class EncoderError(ValueError):
    """An encoder that cannot be loaded, or an input that it cannot take; the message says what would do."""


def locate(name_or_path: str | Path, asset: str) -> str:
    """The directory of the embedded asset for "embedded", else the argument as text.

    Raises:
        EncoderError: the embedded asset is not in this installation.
    """
    if str(name_or_path) != EMBEDDED:
        return str(name_or_path)
    directory = ASSETS / asset
    if not (directory / "config.json").is_file():
        raise EncoderError(
            f"the embedded {asset} is not at {directory}; reinstall oneflow, or name a directory"
        )
    return str(directory)


def read_name(name_or_path: str, subfolder: str | None) -> str:
    """The name stored beside the weights, else the last part of the directory's or repository's name."""
    stored = Path(name_or_path, subfolder or "", NAME_FILE)
    if stored.is_file():
        return str(json.loads(stored.read_text())["name"])
    return re.sub(r"[^a-z0-9.]+", "-", Path(name_or_path).name.lower()).strip("-") or "encoder"


def write_name(directory: Path, name: str) -> None:
    """Stores `name` where `read_name` finds it."""
    (directory / NAME_FILE).write_text(json.dumps({"name": name}) + "\n")


def encoder_id(name: str, settings: Mapping[str, Any], model: nn.Module) -> str:
    """`<name>@<12 hex>`: a digest of the settings and of every weight, as float32 whatever it is stored in."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode())
    for key, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else torch.int64)
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return f"{name}@{digest.hexdigest()[:12]}"


def as_stored(model: nn.Module) -> Any:
    """A float16 copy where every weight is the same number in it, as the embedded ones are; else `model` itself."""
    exact = all(torch.equal(p.half().to(p.dtype), p) for p in model.parameters())
    return copy.deepcopy(model).half() if exact else model


def check_images(images: Any) -> None:
    """Holds that `images` is uint8 [N, H, W, 3] with a non-empty frame.

    Raises:
        EncoderError: it is not.
    """
    shape, dtype = getattr(images, "shape", None), str(getattr(images, "dtype", type(images).__name__))
    if dtype != "uint8" or shape is None or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise EncoderError(
            f"images must be a uint8 array [N, H, W, 3], not {dtype} {shape}; convert to RGB first"
        )
