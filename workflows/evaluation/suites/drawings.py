"""Items that ask for pictures, and the pictures that came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from oneflow_core.metrics.control import derangement
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.item import Item, Output
from workflows.evaluation.suites.files import pixels
from workflows.evaluation.suites.loading import item

Picture = NDArray[np.uint8]


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


class Drawings(Sequence[Picture | None]):
    """The first picture of each output, uint8 [H, W, 3], or None where there is none that can be read.

    A picture is decoded when it is asked for and not kept: those of a whole evaluation do not fit into memory.
    """

    def __init__(self, outputs: Sequence[Output]) -> None:
        self.outputs = outputs
        self._known: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self.outputs)

    @overload
    def __getitem__(self, place: int) -> Picture | None: ...

    @overload
    def __getitem__(self, place: slice) -> list[Picture | None]: ...

    def __getitem__(self, place: int | slice) -> Picture | None | list[Picture | None]:
        """Decodes one, or those of a slice."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        images = self.outputs[place].images
        try:
            found = pixels(images[0]) if images else None
        except ValueError:
            found = None
        self._known[place] = found is not None
        return found

    def lost(self, what: str) -> list[str]:
        """A line on items without a picture, where there are any, and on what they count as."""
        missing = [
            n for n in range(len(self)) if not (self._known[n] if n in self._known else self[n] is not None)
        ]
        if not missing:
            return []
        why = self.outputs[missing[0]].error or "the answer held no picture that can be read"
        return [f"{len(missing)} of {len(self)} items have no picture and {what}; the first: {why}"]


def shuffled_place(count: int) -> list[int]:
    """For each of `count` pictures another one; one alone keeps its own."""
    return derangement(count, np.random.default_rng(count)) if count > 1 else list(range(count))
