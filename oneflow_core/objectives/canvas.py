"""What all objectives share: a document's task as clean elements, its images as noised patches, and one example of all.

Shapes as in `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.flows.image import flow_error, interpolate, patchify
from oneflow_core.flows.schedule import logit_normal
from oneflow_core.layout import (
    FEATURES,
    IMAGE,
    TOKEN,
    Elements,
    Piece,
    clean_elements,
    feature_grid,
    grid_positions,
    join,
    lay_out,
)
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.objectives.config import ObjectiveConfig
from oneflow_core.objectives.protocol import Normalisers
from oneflow_core.objectives.tasks import Task
from oneflow_core.packing import Example, Pack

if TYPE_CHECKING:
    from oneflow_core.data.shard import Sample
    from oneflow_core.tokenizer import Tokenizer

Float32 = NDArray[np.float32]


@dataclass
class Patches:
    """Latent patches of the present images, flat, in order."""

    noisy_ND: Float32
    clean_ND: Float32
    noise_ND: Float32
    time_N: Float32
    grid_N2: NDArray[np.int64]


@dataclass
class Copy:
    """One corruption of a document's part that is not shared."""

    elements: Elements
    """What is left; images are numbered by `block_E` among all of the document's."""
    count_S: NDArray[np.int64]
    """Elements to predict at each slot."""
    pair_slot_K: NDArray[np.int64]
    pair_token_K: NDArray[np.int64]
    patches: Patches
    clock: float
    spurious_S: NDArray[np.int64] | None = None
    """As `Example.spurious_S`."""


class Canvas:
    """Documents as a network of these dimensions sees them."""

    def __init__(self, config: ObjectiveConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer

    def pieces(self, task: Task) -> list[Piece]:
        """A task's parts, texts as token ids."""
        kinds = {True: FEATURES, False: IMAGE}
        return [
            Piece(kinds[part.prompt], part.prompt)
            if part.image >= 0
            else Piece(TOKEN, part.prompt, self.tokenizer.encode(part.text)[: self.config.max_text_tokens])
            for part in task.parts
        ]

    def elements(self, task: Task, pieces: Sequence[Piece]) -> tuple[Elements | None, Elements]:
        """The clean document: the prefix that its copies share, if there is one, and the rest."""
        prefix = self.model.prompt_attention == "prefix"
        ids = self.tokenizer.bos_id, self.tokenizer.image_id
        clean = clean_elements(pieces, *ids, text=not task.text_clean, prefix=prefix)
        given_E = clean.copy_E < 0
        return (clean.take(given_E), clean.take(~given_E)) if given_E.any() else (None, clean)

    def image_times(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Times of images where nothing forces them."""
        if self.config.image_time_std == 0 or not count:
            return rng.random(count)
        return logit_normal(self.config.image_time_mean, self.config.image_time_std, count, rng)

    def noised(
        self, task: Task, sample: Sample, present: NDArray, times_I: NDArray, rng: np.random.Generator
    ) -> Patches:
        """The generated images of a task that are `present` (numbers, in order), at their times.

        Raises:
            ValueError: a latent with other channels than the model's.
        """
        numbers = [part.image for part in task.parts if part.image >= 0 and not part.prompt]
        latents = [sample.latents[numbers[i]] for i in present]
        if not latents:
            empty = np.zeros((0, self.model.patch_dim), np.float32)
            return Patches(empty, empty, empty, np.zeros(0, np.float32), np.zeros((0, 2), np.int64))
        for a in latents:
            if a.shape[0] != self.model.latent_channels:
                raise ValueError(
                    f"a latent has {a.shape[0]} channels, the model takes {self.model.latent_channels}; "
                    "encode the corpus with the codec that the model is configured for"
                )
        scale, times = np.float32(self.model.latent_scale), times_I[present]
        clean = [patchify(a.astype(np.float32) / scale, self.model.patch) for a in latents]
        noise = [rng.standard_normal(c.shape, np.float32) for c in clean]
        noisy = [interpolate(c, n, float(np.float32(t))) for c, n, t in zip(clean, noise, times, strict=True)]
        time_N = np.repeat(times, [len(c) for c in clean]).astype(np.float32)
        sides = [[side // self.model.patch for side in a.shape[1:]] for a in latents]
        grid_N2 = np.concatenate([grid_positions(*side) for side in sides])
        noisy_ND, clean_ND, noise_ND = (np.concatenate(x) for x in (noisy, clean, noise))
        return Patches(noisy_ND, clean_ND, noise_ND, time_N, grid_N2)

    def as_read(self, task: Task, elements: Elements, read_E: NDArray[np.bool_]) -> Elements:
        """Elements with these generated images as features; their blocks follow those of the given images."""
        return replace(
            elements,
            kind_E=np.where(read_E, FEATURES, elements.kind_E),
            block_E=elements.block_E + np.where(read_E, task.prompt_images, 0),
        )

    def example(
        self, task: Task, sample: Sample, shared: Elements | None, copies: Sequence[Copy], targets: int
    ) -> Example:
        """All copies behind what they share; `targets` is the target tokens of one."""
        images = sum(part.image >= 0 and not part.prompt for part in task.parts)
        parts, counts = [] if shared is None else [shared], np.zeros(images * len(copies), np.int64)
        for number, copy in enumerate(copies):
            if images:
                counts[_renumber(copy.elements, number * images)] = _sizes(copy.patches)
            if number:
                copy.elements.copy_E = np.full(len(copy.elements), number)
            parts.append(copy.elements)
        features = self._features(task, sample)
        sizes_U = np.array([len(f) for f in features], np.int64)
        layout = lay_out(join(parts) if len(parts) > 1 else parts[0], counts, sizes_U)
        feature_MD, feature_grid_M2 = self._shown([features[u] for u in layout.read_image_U])
        slots = [len(c.count_S) for c in copies]
        offsets = np.cumsum([0, *slots[:-1]]).tolist()
        spurious = [c.spurious_S for c in copies if c.spurious_S is not None]
        return Example(
            layout,
            _joined([c.count_S for c in copies]),
            _joined(
                [c.pair_slot_K + o if o else c.pair_slot_K for c, o in zip(copies, offsets, strict=True)]
            ),
            _joined([c.pair_token_K for c in copies]),
            noisy_ND=_joined([c.patches.noisy_ND for c in copies]),
            clean_ND=_joined([c.patches.clean_ND for c in copies]),
            noise_ND=_joined([c.patches.noise_ND for c in copies]),
            time_N=_joined([c.patches.time_N for c in copies]),
            patch_grid_N2=_joined([c.patches.grid_N2 for c in copies]),
            feature_MD=feature_MD,
            feature_grid_M2=feature_grid_M2,
            copy_S=np.arange(len(copies)).repeat(slots),
            clock_C=np.array([c.clock for c in copies]),
            weight_C=np.ones(len(copies)),
            text_targets=targets * len(copies),
            causal=self.model.objective == "transfusion",
            spurious_S=np.concatenate(spurious) if len(spurious) == len(copies) else None,
            task=task.name,
        )

    def _features(self, task: Task, sample: Sample) -> list[NDArray[np.float16]]:
        """Understanding features of the given images, and of the generated ones where they are re-encoded."""
        images = [p for p in task.parts if p.image >= 0]
        read = [p for p in images if p.prompt] + [p for p in images if task.reencoded and not p.prompt]
        features = [sample.features[p.image] for p in read]
        for f in features:
            if f.shape[1] != self.model.feature_dim:
                raise ValueError(
                    f"features are {f.shape[1]} wide, the model takes {self.model.feature_dim}; "
                    "encode the corpus with the understanding encoder that the model is configured for"
                )
        return features

    def _shown(self, features: Sequence[NDArray]) -> tuple[Float32, NDArray[np.int64]]:
        """Features that are shown, in order, and their places."""
        if not features:
            return np.zeros((0, self.model.feature_dim), np.float32), np.zeros((0, 2), np.int64)
        places = np.concatenate([feature_grid(len(f)) for f in features])
        return np.concatenate(features).astype(np.float32), places


def image_error(
    outputs: ModelOutputs, pack: Pack, config: ObjectiveConfig, model: ModelConfig
) -> torch.Tensor:
    """Squared error of every patch, mean over its dimensions, [N]."""
    return flow_error(
        outputs.image_ND,
        pack.clean_ND,
        pack.noise_ND,
        pack.inputs.time_N,
        model.prediction,
        model.clean_eps,
        config.image_loss,
    )


def image_part(
    error_N: torch.Tensor, pack: Pack, normalisers: Normalisers, config: ObjectiveConfig
) -> torch.Tensor:
    """The image loss: mean of `image_error` over patches in flow, weighed."""
    return (error_N * pack.flow_N).sum() * (config.image_weight / max(normalisers["image"], 1.0))


def normaliser_shares(pack: Pack, config: ObjectiveConfig) -> dict[str, float]:
    """A pack's share of the sums that text and image losses are divided by."""
    text = {
        "batch": float(pack.text_targets),
        "constant": config.text_constant * pack.texts,
        "length": float(pack.texts),
    }[config.text_normaliser]
    return {"text": text, "image": float(pack.flow_N.sum())}


def _joined(arrays: list[NDArray]) -> NDArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _renumber(elements: Elements, offset: int) -> NDArray[np.int64]:
    """Shifts the numbers of images by `offset`, and gives those that are there."""
    image_E = elements.kind_E == IMAGE
    elements.block_E = np.where(image_E, elements.block_E + offset, elements.block_E)
    return elements.block_E[image_E]


def _sizes(patches: Patches) -> NDArray[np.int64]:
    """Patches of each image: one begins where the grid does."""
    starts = np.flatnonzero((patches.grid_N2 == 0).all(axis=1))
    return np.diff(np.r_[starts, len(patches.grid_N2)])
