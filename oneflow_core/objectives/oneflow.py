"""The OneFlow objective: insertion-only Edit Flow for text and Flow Matching for images (paper section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oneflow_core.flows.image import Prediction, flow_error, interpolate, patchify
from oneflow_core.flows.insertion import insertion_terms, left_neighbours
from oneflow_core.flows.schedule import build_schedule, draw_births, hazard, image_times, logit_normal
from oneflow_core.layout import FEATURES, IMAGE, TOKEN, Elements, grid_positions, lay_out
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.objectives.tasks import Task, TaskMixture, choose_task
from oneflow_core.packing import Example, Pack

if TYPE_CHECKING:
    from oneflow_core.data.shard import Sample
    from oneflow_core.tokenizer import Tokenizer

Normalisers = Mapping[str, float]
"""Sums over the global batch that the loss is divided by: `text` as the config says, `image` patches in flow."""
TextNormaliser = Literal["batch", "constant", "length"]


@dataclass(frozen=True)
class OneFlowConfig:
    """How documents are corrupted and how the parts of the loss are weighed."""

    schedule: str = "linear"
    """kappa: linear (the paper), cosine, power:<exponent>."""
    mixture: TaskMixture = field(default_factory=TaskMixture)
    image_weight: float = 1.0
    """Weight of the image loss beside the text loss."""
    image_loss: Prediction = "velocity"
    """Where the image error is measured: velocity (the paper), or the clean latent (`flow_error`)."""
    image_time_mean: float = -0.6
    """Mean of the logit-normal law of t_img on the independent schedule (METHOD 12); interleaved times are forced."""
    image_time_std: float = 1.0
    """Its standard deviation; 0 means uniform times."""
    text_normaliser: TextNormaliser = "batch"
    """What the text loss is divided by: target tokens of the global batch; `text_constant` for each document with a
    text; or "length", the literal 1/n of eq. 7 with n the tokens of the corrupted document, then the documents."""
    text_constant: float = 128.0
    """Tokens that a document counts as under the constant normaliser."""
    time_weight: Literal["none", "hazard"] = "none"
    """hazard: the text loss of a document is weighed by kappa'/(1 - kappa), as in Edit Flows; none: the paper."""
    time_weight_cap: float = 20.0
    """Largest such weight; without a cap a network that is not told the time learns to insert nothing (METHOD 7.2)."""
    complete_weight: float = 1.0
    """Weight of the text loss where an interleaved document's text is complete (clock above 1): more makes a network
    that is not told the time insert less (METHOD 7.6)."""
    max_text_tokens: int = 512
    """Longer texts are cut to this many tokens a segment."""


@dataclass
class LossOutput:
    """The loss of one pack."""

    total: Tensor
    """Already divided by the global normalisers; sum it over packs and ranks."""
    parts: dict[str, Tensor]
    """Detached shares of `total` by part: tokens, rate, zero, image; and rate_regret for monitoring."""


class OneFlowObjective:
    """Corrupts documents and scores the network's answer; one instance serves any number of loader threads."""

    def __init__(self, config: OneFlowConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.schedule = build_schedule(config.schedule)

    def prepare(self, sample: Sample, rng: np.random.Generator) -> Example:
        """One corruption of one document, a pure function of its arguments.

        Raises:
            ValueError: a latent or feature array that does not fit the model.
        """
        task = choose_task(sample.document, self.config.mixture, rng)
        elements = self._elements(task)
        clock, births_E = self._times(task, elements, rng)
        keep_E = births_E <= clock
        kept = elements.take(keep_E)
        images = [p.image for p in task.parts if p.image >= 0 and not p.prompt]
        prompts = [p.image for p in task.parts if p.image >= 0 and p.prompt]
        kept_images = kept.block_E[kept.kind_E == IMAGE]
        times_I = self._image_times(task, clock, births_E[elements.kind_E == IMAGE], len(images), rng)
        latents = [sample.latents[images[i]] for i in kept_images]
        features = [sample.features[i] for i in prompts]
        patches = self._noised(latents, times_I[kept_images], rng)
        shown, feature_grid = self._features(features)
        patch_counts = np.zeros(len(images), np.int64)
        patch_counts[kept_images] = [_cells(a, self.model.patch) for a in latents]
        layout = lay_out(kept, patch_counts, np.array([len(f) for f in features], np.int64))
        count_S, pair_slot_K, pair_token_K = _missing(elements, keep_E, kept)
        return Example(
            layout,
            count_S,
            pair_slot_K,
            pair_token_K,
            *patches,
            feature_MD=shown,
            feature_grid_M2=feature_grid,
            text_targets=int((~elements.prompt_E & (elements.kind_E == TOKEN)).sum()),
            clock=clock,
            weight=self._weight(clock, len(layout.token_T)),
        )

    def normalisers(self, pack: Pack) -> dict[str, float]:
        """This pack's share of the global normalisers; sum it over the global batch before `loss`."""
        text = {
            "batch": float(pack.text_targets),
            "constant": self.config.text_constant * pack.texts,
            "length": float(pack.texts),
        }[self.config.text_normaliser]
        return {"text": text, "image": float(pack.flow_N.sum())}

    def loss(self, model: nn.Module, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """Loss of one pack: [CE + Poisson + BCE] / text normaliser + w * mean squared image error.

        By default a batch-global normaliser replaces the literal 1/n of eq. 7, whose variance is ruinous (METHOD 7.3).
        """
        return self.score(model(pack.inputs), pack, normalisers)

    def score(self, outputs: ModelOutputs, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """`loss` for outputs that are there already."""
        if outputs.nll_K is None:
            raise ValueError(
                "the pack carries no (slot, token) pairs; build it with oneflow_core.packing.collate"
            )
        terms = insertion_terms(
            outputs.pi_logit_S,
            outputs.rate_S,
            pack.count_S,
            outputs.nll_K,
            pack.weight_S,
            pack.weight_K,
            self.model.counts,
        )
        error_N = flow_error(
            outputs.image_ND,
            pack.clean_ND,
            pack.noise_ND,
            pack.inputs.time_N,
            self.model.prediction,
            self.model.clean_eps,
            self.config.image_loss,
        )
        text = 1 / max(normalisers["text"], 1.0)
        image = self.config.image_weight / max(normalisers["image"], 1.0)
        parts = {
            "tokens": terms.tokens * text,
            "rate": terms.rate * text,
            "zero": terms.zero * text,
            "image": (error_N * pack.flow_N).sum() * image,
        }
        total = torch.stack(list(parts.values())).sum()
        parts["rate_regret"] = terms.rate_regret * text
        return LossOutput(total, {k: v.detach() for k, v in parts.items()})

    def _elements(self, task: Task) -> Elements:
        """BOS and the parts of a task as clean elements, with slots where text may be inserted."""
        kind, token, block, prompt = [TOKEN], [self.tokenizer.bos_id], [-1], [True]
        images = prompts = 0
        for part in task.parts:
            if part.image < 0:
                ids = self.tokenizer.encode(part.text)[: self.config.max_text_tokens]
                kind += [TOKEN] * len(ids)
                token += ids
                block += [-1] * len(ids)
                prompt += [part.prompt] * len(ids)
                continue
            kind.append(FEATURES if part.prompt else IMAGE)
            token.append(self.tokenizer.image_id)
            block.append(prompts if part.prompt else images)
            prompt.append(part.prompt)
            images, prompts = images + (not part.prompt), prompts + part.prompt
        prompt_E = np.array(prompt, bool)
        slot_E = ~prompt_E | np.r_[~prompt_E[1:], False]
        return Elements(
            np.zeros(len(kind), np.int64),
            np.array(kind, np.int64),
            np.array(token, np.int64),
            np.array(block, np.int64),
            prompt_E,
            slot_E & (not task.text_clean),
        )

    def _times(
        self, task: Task, elements: Elements, rng: np.random.Generator
    ) -> tuple[float, NDArray[np.float64]]:
        """The text clock and each element's birth time; -inf for what is always there (METHOD 3.3)."""
        births_E = draw_births(self.schedule, len(elements), rng)
        clock = (
            1.0 if task.text_clean else float(rng.random()) * (2.0 if task.clock == "interleaved" else 1.0)
        )
        always_E = elements.prompt_E.copy()
        if task.clock == "independent":
            always_E |= elements.kind_E == IMAGE
        births_E[always_E] = -np.inf
        return clock, births_E

    def _weight(self, clock: float, length: int) -> float:
        """Weight of a document's text loss, `length` being its tokens as corrupted."""
        weight = 1.0
        if clock > 1:
            weight = self.config.complete_weight
        elif self.config.time_weight == "hazard":
            weight = min(self.config.time_weight_cap, float(hazard(self.schedule, np.array(clock))))
        return weight / length if self.config.text_normaliser == "length" else weight

    def _image_times(
        self, task: Task, clock: float, births_I: NDArray[np.float64], count: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        if task.clock == "interleaved":
            return image_times(clock, births_I)
        if self.config.image_time_std == 0:
            return rng.random(count)
        return logit_normal(self.config.image_time_mean, self.config.image_time_std, count, rng)

    def _noised(
        self, latents: list[NDArray], times: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]:
        """Patches of the present images: noisy, clean, noise, time, in flow, grid."""
        if not latents:
            empty = np.zeros((0, self.model.patch_dim), np.float32)
            return empty, empty, empty, np.zeros(0, np.float32), np.zeros(0, bool), np.zeros((0, 2), np.int64)
        for a in latents:
            if a.shape[0] != self.model.latent_channels:
                raise ValueError(
                    f"a latent has {a.shape[0]} channels, the model takes {self.model.latent_channels}; "
                    "encode the corpus with the codec that the model is configured for"
                )
        scale = np.float32(self.model.latent_scale)
        clean = [patchify(a.astype(np.float32) / scale, self.model.patch) for a in latents]
        noise = [rng.standard_normal(c.shape, np.float32) for c in clean]
        noisy = [interpolate(c, n, float(np.float32(t))) for c, n, t in zip(clean, noise, times, strict=True)]
        time_N = np.repeat(times, [len(c) for c in clean]).astype(np.float32)
        grids = [
            grid_positions(a.shape[1] // self.model.patch, a.shape[2] // self.model.patch) for a in latents
        ]
        noisy_ND, clean_ND, noise_ND = (np.concatenate(x) for x in (noisy, clean, noise))
        return noisy_ND, clean_ND, noise_ND, time_N, time_N < 1, np.concatenate(grids)

    def _features(self, features: list[NDArray]) -> tuple[NDArray, NDArray]:
        if not features:
            return np.zeros((0, self.model.feature_dim), np.float32), np.zeros((0, 2), np.int64)
        for f in features:
            if f.shape[1] != self.model.feature_dim:
                raise ValueError(
                    f"features are {f.shape[1]} wide, the model takes {self.model.feature_dim}; "
                    "encode the corpus with the understanding encoder that the model is configured for"
                )
        return np.concatenate(features).astype(np.float32), np.concatenate(
            [feature_grid(len(f)) for f in features]
        )


def feature_grid(count: int) -> NDArray[np.int64]:
    """Grid positions of `count` understanding features: a square where it is one, else a row."""
    side = int(round(count**0.5))
    return grid_positions(side, side) if side * side == count else grid_positions(1, count)


def _cells(latent: NDArray, patch: int) -> int:
    return (latent.shape[1] // patch) * (latent.shape[2] // patch)


def _missing(
    elements: Elements, keep_E: NDArray[np.bool_], kept: Elements
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts of missing elements by slot, and the (slot, token) pairs of all of them."""
    slot_of_element = np.cumsum(kept.slot_E) - 1
    pair_slot_K = slot_of_element[left_neighbours(keep_E)]
    count_S = np.bincount(pair_slot_K, minlength=int(kept.slot_E.sum())).astype(np.int64)
    return count_S, pair_slot_K, elements.token_E[~keep_E]
