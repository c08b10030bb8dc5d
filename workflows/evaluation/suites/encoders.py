"""Encoders and judges by path, loaded once; what cannot be loaded is an error of the config's field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from oneflow_core.encoders import DualEncoder, EncoderError
from workflows.errors import UsageError


@contextmanager
def named_by(field: str, mend: str = "name another") -> Iterator[None]:
    """A block that loads what the config's `field` names; UsageError where that fails."""
    try:
        yield
    except EncoderError as error:
        raise UsageError(field, str(error), mend) from error


@lru_cache(1)
def dual_encoder(field: str, path: str | None, device: str) -> DualEncoder:
    """The CLIP or SigLIP at `path`; UsageError where none is named or it cannot be loaded."""
    if not path:
        example = "a directory or hub repository of a CLIP or a SigLIP, e.g. openai/clip-vit-large-patch14"
        raise UsageError(field, f"{field} is not set", f"name {example}, with --set {field}=PATH")
    with named_by(field):
        return DualEncoder.from_pretrained(path, device=device)
