"""The documents of a running batch: what was asked for, each one's own settings, randomness and clock.

Documents join at any time and leave at any time; those that stay are numbered 0 to B - 1 in the order in which they
joined. Everything that there is once for each of them is an array or a list along B, named in `BY_DOCUMENT`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from oneflow_core.flows.schedule import build_schedule
from oneflow_core.sampling.types import OWN, Request, SamplerConfig

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class Documents:
    """Requests in the making. B documents.

    `config` holds what they share; of the settings named in `OWN` each document has its own.
    """

    BY_DOCUMENT: ClassVar[tuple[str, ...]] = (
        *(f"{name}_B" for name in OWN),
        *("requests", "rng_B", "passes_B", "age_B", "images_B", "image_only_B"),
    )

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        self.requests: list[Request] = []
        self.rng_B: list[np.random.Generator] = []
        self.steps_B: IntArray = np.zeros(0, np.int64)
        self.max_images_B: IntArray = np.zeros(0, np.int64)
        """Images that each document may generate: none but what is asked for, unless it is an open document."""
        self.max_tokens_B: IntArray = np.zeros(0, np.int64)
        self.image_guidance_B: FloatArray = np.zeros(0)
        self.text_guidance_B: FloatArray = np.zeros(0)
        self.temperature_B: FloatArray = np.zeros(0)
        self.images_B: IntArray = np.zeros(0, np.int64)
        """Images that each document begins with, behind its text."""
        self.image_only_B: BoolArray = np.zeros(0, bool)
        """Documents that are one image, and no text."""
        self.passes_B: IntArray = np.zeros(0, np.int64)
        """Passes of the network that each document took part in."""
        self.age_B: IntArray = np.zeros(0, np.int64)
        """Steps that each document has taken."""
        self.step = 0
        """Steps that the batch has taken; a document may take several in one of them."""

    def admit(self, requests: Sequence[Request], configs: Sequence[SamplerConfig]) -> None:
        """These documents stand behind the others from now on.

        Raises:
            ValueError: a setting that documents share and that is not the batch's.
        """
        for config in configs:
            self._check_shared(config)
        own: dict[str, Sequence[Any]] = {f"{name}_B": [getattr(c, name) for c in configs] for name in OWN}
        own["max_images_B"] = [
            c.max_images if r.target == "document" else 0 for r, c in zip(requests, configs, strict=True)
        ]
        count = len(requests)
        self.extend(
            **own,
            requests=list(requests),
            rng_B=[np.random.default_rng(r.seed) for r in requests],
            passes_B=[0] * count,
            age_B=[0] * count,
            images_B=[r.images for r in requests],
            image_only_B=[r.target == "image" for r in requests],
        )

    def extend(self, **values: Sequence[Any] | NDArray[Any]) -> None:
        """Puts values behind those that are there, along B."""
        for name, new in values.items():
            held = getattr(self, name)
            if isinstance(held, list):
                held.extend(new)
            else:
                setattr(self, name, np.append(held, np.asarray(new, held.dtype)))

    def keep(self, left_B: BoolArray) -> None:
        """Documents outside `left_B` leave."""
        for name in self.BY_DOCUMENT:
            held = getattr(self, name)
            setattr(self, name, list_of(held, left_B) if isinstance(held, list) else held[left_B])

    def next_time(self, time: FloatArray, steps: IntArray) -> FloatArray:
        """Where a step from `time` leads where there are `steps` in all; at most 1."""
        if self.config.step_schedule == "linear":
            then = time + 1 / steps
        else:
            grid = build_schedule(self.config.step_schedule)
            then = grid.kappa(np.minimum(1.0, grid.inverse(np.minimum(time, 1.0)) + 1 / steps))
        return np.where(then > 1 - 1e-9, 1.0, then)

    def _check_shared(self, config: SamplerConfig) -> None:
        for field in dataclasses.fields(SamplerConfig):
            ours, theirs = getattr(self.config, field.name), getattr(config, field.name)
            if field.name not in OWN and ours != theirs:
                raise ValueError(
                    f"{field.name} is {ours!r} in this batch, and a document asks for {theirs!r}; documents that run "
                    f"together share all settings but {', '.join(OWN)}"
                )


def list_of(held: list[Any], left: BoolArray) -> list[Any]:
    """The entries of a list where `left` says so."""
    return [value for value, stays in zip(held, left.tolist(), strict=True) if stays]
