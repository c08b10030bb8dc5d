"""The sampler of Mask + FM: texts of fixed length, some masks settled at every step (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.schedule import build_schedule
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.sampling.draw import draw, guided
from oneflow_core.sampling.forward import Batch, build_batch
from oneflow_core.sampling.media import Media
from oneflow_core.sampling.prefix import PrefixCache
from oneflow_core.sampling.types import Generation, Reencode, Request, SamplerConfig


class MaskedState(Media):
    """Documents in the making. Slots are the masks that are left."""

    def __init__(
        self,
        requests: Sequence[Request],
        config: SamplerConfig,
        model: ModelConfig,
        bos_id: int,
        image_id: int,
        reencode: Reencode | None = None,
    ) -> None:
        super().__init__(requests, config, model, bos_id, image_id, reencode)
        for request in requests:
            if request.target == "document":
                raise ValueError(
                    "a masked model cannot choose where images stand; ask for an image or for a text"
                )
        self.text_time_B = np.array([1.0 if r.target == "image" else 0.0 for r in requests])
        self.elements = self.start([model.mask_id] * config.length)
        self.elements.slot_E = self.elements.token_E == model.mask_id
        self.born_E = np.zeros(len(self.elements))
        self.born_step_E = np.zeros(len(self.elements), np.int64)

    @property
    def due_B(self) -> NDArray[np.bool_]:
        """Documents with a mask, or with an image in flow."""
        due = np.zeros(len(self.requests), bool)
        due[self.elements.document_E[self.elements.slot_E]] = True
        due[np.array(self.image_document, int)[self.images_in_flow]] = True
        return due

    def settle(self, at: NDArray[np.int64], token: NDArray[np.int64], times_B: NDArray[np.float64]) -> None:
        """Elements `at` are no masks any more."""
        self.elements.token_E[at], self.elements.slot_E[at] = token, False
        self.born_E[at], self.born_step_E[at] = times_B[self.elements.document_E[at]], self.step

    def finish(self) -> list[Generation]:
        """The documents as they stand, each text up to its first end symbol."""
        e, made = self.elements, []
        for b in range(len(self.requests)):
            mine = np.flatnonzero((e.document_E == b) & ~e.prompt_E)
            ends = np.flatnonzero(e.token_E[mine] == self.bos_id)
            mine = mine[: ends[0]] if len(ends) else mine
            made.append(self.generation(b, e.take(mine), self.born_E[mine], self.born_step_E[mine]))
        return made


class MaskedSampler:
    """Generates documents with a model of the masked objective; see `Sampler`."""

    def __init__(
        self, model: OneFlowModel, *, bos_id: int, image_id: int, reencode: Reencode | None = None
    ) -> None:
        self.model, self.bos_id, self.image_id, self.reencode = model, bos_id, image_id, reencode

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        config: SamplerConfig | None = None,
        observe: Callable[[MaskedState], None] | None = None,
    ) -> list[Generation]:
        """As `Sampler.generate`, in `config.steps` passes; texts of `config.length` tokens.

        Raises:
            ValueError: a target "document": the places of images cannot be chosen.
        """
        config = config or SamplerConfig()
        state = MaskedState(requests, config, self.model.config, self.bos_id, self.image_id, self.reencode)
        device = next(self.model.parameters()).device
        keeps = config.prefix_cache and self.model.config.prompt_attention == "prefix"
        prefixes = PrefixCache(self.model, state, state.elements) if keeps else None
        while state.due_B.any():
            batch = build_batch(state, device, prefixes)
            outputs = self.model(batch.inputs, batch.cache) if prefixes else self.model(batch.inputs)
            state.passes_B += state.due_B
            logits = guided(outputs.logits_RV, batch.full_slots, config.text_guidance)
            state.move_images(batch.image_I, batch.full_images, batch.inputs, outputs, lambda _: None)
            self._settle(state, batch, logits)
            state.step += 1
            if observe:
                observe(state)
        return state.finish()

    def _settle(self, state: MaskedState, batch: Batch, logits_SV: Tensor) -> None:
        """Draws a token for every mask and keeps as many as the schedule has by now."""
        then_B = state.next_time(state.text_time_B)
        logits_SV = logits_SV.float().cpu().clone()
        logits_SV[:, [self.image_id, self.model.config.mask_id]] = -torch.inf
        document_S = state.elements.document_E[batch.slot_element_S]
        sizes = np.bincount(document_S, minlength=len(state.requests))
        draws = np.concatenate(
            [rng.random((2, n)) for rng, n in zip(state.rng_B, sizes, strict=True)], axis=1
        )
        token_S = draw(logits_SV, draws[0], state.config)
        rank_S = draws[1]
        if state.config.remask == "confidence":
            rank_S = -logits_SV.softmax(-1).numpy()[np.arange(len(token_S)), token_S].astype(np.float64)
        schedule = build_schedule(state.config.schedule)
        left_B = np.round(state.config.length * (1 - schedule.kappa(np.minimum(then_B, 1.0)))).astype(int)
        order = np.lexsort((rank_S, document_S))
        place_S = np.empty(len(order), np.int64)
        place_S[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        chosen = place_S < (sizes - left_B)[document_S]
        state.settle(batch.slot_element_S[chosen], token_S[chosen], state.text_time_B)
        state.text_time_B = then_B
