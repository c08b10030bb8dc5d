"""Items that ask for pictures, and the pictures that came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.control import derangement
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.files import pixels
from workflows.evaluation.suites.loading import item


def drawing_items(
    config: EvaluateConfig,
    suite: str,
    prompts: Mapping[str, tuple[str, str]],
    detail: Mapping[str, str] | None = None,
) -> list[Item]:
    """`images_per_prompt` items of each prompt, (text, truth) by name; those of one prompt are one group."""
    return [
        item(
            config,
            suite,
            name,
            (text,),
            "image",
            truth,
            copy=copy,
            group=name,
            detail=(detail or {}).get(name, ""),
        )
        for name, (text, truth) in prompts.items()
        for copy in range(config.images_per_prompt)
    ]


def drawings(outputs: Sequence[Output]) -> list[NDArray[np.uint8] | None]:
    """The first picture of each output, uint8 [H, W, 3]; None where there is none that can be read."""
    made: list[NDArray[np.uint8] | None] = []
    for output in outputs:
        try:
            made.append(pixels(output.images[0]) if output.images else None)
        except ValueError:
            made.append(None)
    return made


def lost(outputs: Sequence[Output], made: Sequence[NDArray[np.uint8] | None], what: str) -> list[str]:
    """A line on items without a picture, where there are any, and on what they count as."""
    missing = [output for output, one in zip(outputs, made, strict=True) if one is None]
    if not missing:
        return []
    why = missing[0].error or "the answer held no picture that can be read"
    return [f"{len(missing)} of {len(made)} items have no picture and {what}; the first: {why}"]


def shuffled_place(count: int) -> list[int]:
    """For each of `count` pictures another one; one alone keeps its own."""
    return derangement(count, np.random.default_rng(count)) if count > 1 else list(range(count))
