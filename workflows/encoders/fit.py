"""Fitting an encoder by its recipe, and measuring one, with errors that a user can act on."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from oneflow_core.encoders import EncoderError, LatentCodec, UnderstandingEncoder
from oneflow_core.encoders.assets import write_latent_codec, write_understanding_encoder
from oneflow_core.encoders.latent_fit import LatentRecipe, Progress, fit_latent_codec, measure_latent_codec
from oneflow_core.encoders.understanding_fit import UnderstandingRecipe, fit_understanding_encoder
from oneflow_core.encoders.understanding_report import measure_understanding_encoder
from workflows.errors import OneFlowError, UsageError

Kind = Literal["latent", "understanding"]
Say = Callable[[str], None]
MARK = "recipe.json"
"""A directory without this file was not written by a fit, and is not replaced."""


def fit_encoder(kind: Kind, out: Path, changes: Mapping[str, Any], pictures: int, say: Say) -> dict[str, Any]:
    """Fits the encoder by its recipe with `changes`, writes it to `out`, and gives its report.

    It is measured on `pictures` held-out pictures of each kind.

    Raises:
        UsageError: `out` holds something else.
        OneFlowError: no photographs are installed, or `out` cannot be written.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}", "holds something that no fit wrote", "name a new or empty directory")
    try:
        return (_fit_latent if kind == "latent" else _fit_understanding)(out, changes, pictures, say)
    except FileNotFoundError as error:
        raise OneFlowError(f"fit {kind}", str(error), "uv pip install 'oneflow[encoders]'") from error
    except OSError as error:
        raise OneFlowError(f"--out {out}", str(error), "name a directory on a disk with room") from error


def measure_encoder(kind: Kind, name: str, subfolder: str | None, pictures: int) -> dict[str, Any]:
    """The measures of an encoder that can be loaded from `name`, with its id.

    Raises:
        UsageError: nothing of that kind lies there.
    """
    try:
        if kind == "latent":
            codec = LatentCodec.from_pretrained(name, subfolder=subfolder)
            return {"id": codec.id, **measure_latent_codec(codec, pictures)}
        encoder = UnderstandingEncoder.from_pretrained(name, subfolder=subfolder)
        return {"id": encoder.id, **measure_understanding_encoder(encoder, pictures)}
    except EncoderError as error:
        raise UsageError(f"measure {kind} {name}", str(error), "see docs on encoders") from error


def _fit_latent(out: Path, changes: Mapping[str, Any], pictures: int, say: Say) -> dict[str, Any]:
    recipe, started = LatentRecipe(**changes), time.monotonic()
    codec = fit_latent_codec(recipe, _progress(say, started))
    report = _summary(codec.id, started) | measure_latent_codec(codec, pictures)
    write_latent_codec(out, codec, recipe, report)
    return report


def _fit_understanding(out: Path, changes: Mapping[str, Any], pictures: int, say: Say) -> dict[str, Any]:
    recipe, started = UnderstandingRecipe(**changes), time.monotonic()
    model = fit_understanding_encoder(recipe, _progress(say, started))
    report: dict[str, Any] = {}

    def measure(encoder: UnderstandingEncoder) -> dict[str, Any]:
        report.update(_summary(encoder.id, started), **measure_understanding_encoder(encoder, pictures))
        return report

    write_understanding_encoder(out, model, recipe, measure)
    return report


def _summary(identity: str, started: float) -> dict[str, Any]:
    return {"id": identity, "minutes": round((time.monotonic() - started) / 60, 2)}


def _progress(say: Say, started: float) -> Progress:
    def report(step: int, losses: dict[str, float]) -> None:
        parts = " ".join(f"{k} {v:.4f}" for k, v in losses.items())
        say(f"step {step}, {time.monotonic() - started:.0f} s: {parts}")

    return report
