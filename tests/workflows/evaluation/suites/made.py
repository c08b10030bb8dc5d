"""Small data sets on disk and outputs, for the suites."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workflows.config import load
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.item import Output


def config(preset: str, **values: Any) -> EvaluateConfig:
    """A preset with values by dotted name, `__` for the dot."""
    sets = [
        f"{name.replace('__', '.')}={json.dumps(str(v) if isinstance(v, Path) else v)}"
        for name, v in values.items()
    ]
    found: EvaluateConfig = load("evaluate", preset, sets)
    return found


def png(seed: int = 0, size: tuple[int, int] = (64, 64)) -> bytes:
    """Random blocks of colour as a PNG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return encoded(np.asarray(Image.fromarray(small).resize(size, Image.Resampling.NEAREST)))


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def text(answer: str) -> Output:
    return Output((answer,))


def drawn(data: bytes) -> Output:
    return Output((data,))


FAILED = Output((), "HTTP 500: down")


def folder(directory: Path, names: list[str], form: str = "PNG") -> Path:
    """A picture of its own under each name."""
    directory.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        image = Image.open(io.BytesIO(png(place, (48, 64))))
        image.save(directory / name, form)
    return directory


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path
