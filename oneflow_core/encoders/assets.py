"""Writing a fitted encoder: float16 safetensors, its recipe and its report, all there or not at all."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from oneflow_core.encoders.identity import write_name
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.latent_fit import LatentRecipe
from oneflow_core.encoders.preprocessing import Preprocessing
from oneflow_core.encoders.understanding import UnderstandingEncoder
from oneflow_core.encoders.understanding_fit import EMBEDDED_NAME, UnderstandingRecipe
from oneflow_core.tokenizer import Tokenizer

Report = Mapping[str, Any]


def write_latent_codec(directory: Path, codec: LatentCodec, recipe: LatentRecipe, report: Report) -> None:
    """Writes the codec with recipe.json and report.json; loaded again it has the same id."""

    def fill(fresh: Path) -> None:
        codec.save_pretrained(fresh)
        write_papers(fresh, recipe, report)

    replace_directory(directory, fill)


def write_understanding_encoder(
    directory: Path,
    model: Any,
    recipe: UnderstandingRecipe,
    report: Callable[[UnderstandingEncoder], Report],
) -> None:
    """Writes both towers of a SiglipModel and the tokenizer; `report` is asked about what was written."""

    def fill(fresh: Path) -> None:
        copy.deepcopy(model).half().save_pretrained(fresh)
        Preprocessing.of(model.config.vision_config).write(fresh)
        Tokenizer.from_pretrained("embedded").save_pretrained(fresh)
        write_name(fresh, EMBEDDED_NAME)
        write_papers(fresh, recipe, report(UnderstandingEncoder.from_pretrained(fresh)))

    replace_directory(directory, fill)


def write_papers(directory: Path, recipe: LatentRecipe | UnderstandingRecipe, report: Report) -> None:
    """Writes recipe.json (an unlimited time is null) and report.json, which names the torch that computed."""
    stated = {k: None if v == math.inf else v for k, v in asdict(recipe).items()}
    write_json(directory / "recipe.json", stated)
    write_json(directory / "report.json", {**report, "torch": torch.__version__})


def replace_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Has `fill` write a new directory beside `directory`, then puts it in its place; on an error nothing changes."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fill(fresh)
        fresh.chmod(0o755)
        for file in fresh.iterdir():
            file.chmod(0o644)
        if directory.exists():
            retired = fresh.with_name(fresh.name + "-old")
            os.rename(directory, retired)
            os.rename(fresh, directory)
            shutil.rmtree(retired)
        else:
            os.rename(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")
