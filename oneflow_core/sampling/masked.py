"""The sampler of Mask + FM: texts of fixed length, some masks settled at every step (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.schedule import build_schedule
from oneflow_core.layout import Elements
from oneflow_core.model.config import ModelConfig
from oneflow_core.sampling.base import Sampler
from oneflow_core.sampling.documents import BoolArray, FloatArray, IntArray
from oneflow_core.sampling.draw import draw
from oneflow_core.sampling.forward import Batch
from oneflow_core.sampling.growing import Growing
from oneflow_core.sampling.types import Reencode, Request, SamplerConfig


class MaskedState(Growing):
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
        super().__init__(config, model, bos_id, image_id, reencode)
        self.join(requests)

    def check(self, request: Request) -> None:
        """Raises ValueError for a document: the places of its images cannot be chosen."""
        if request.target == "document":
            raise ValueError(
                "a masked model cannot choose where images stand; ask for an image or for a text"
            )

    def first_text(self) -> Sequence[int]:
        """Masks."""
        return [self.model.mask_id] * self.config.length

    def join(
        self, requests: Sequence[Request], configs: Sequence[SamplerConfig] | None = None
    ) -> Elements | None:
        """As `Growing.join`."""
        new = super().join(requests, configs)
        self.elements.slot_E = self.elements.token_E == self.model.mask_id
        return new

    @property
    def active_B(self) -> BoolArray:
        """Documents with a mask, or with an image in flow."""
        active = np.zeros(len(self.requests), bool)
        active[self.elements.document_E[self.elements.slot_E]] = True
        active[self.image_document[self.images_in_flow]] = True
        return active

    @property
    def due_B(self) -> BoolArray:
        """All that are not done."""
        return self.active_B

    def settle(self, at: IntArray, token: IntArray, times_B: FloatArray) -> None:
        """Elements `at` are no masks any more."""
        document = self.elements.document_E[at]
        self.elements.token_E[at], self.elements.slot_E[at] = token, False
        self.born_E[at], self.born_step_E[at] = times_B[document], self.age_B[document]

    def made(self, b: int) -> IntArray:
        """The settled elements of document b, up to its first end symbol."""
        at = super().made(b)
        (ends,) = (self.elements.token_E[at] == self.bos_id).nonzero()
        at = at[: ends[0]] if len(ends) else at
        return at[~self.elements.slot_E[at]]


class MaskedSampler(Sampler[MaskedState]):
    """Generates documents with a model of the masked objective, in `config.steps` passes; texts of `config.length`."""

    def empty(self, config: SamplerConfig) -> MaskedState:
        """As `Sampler.empty`."""
        return MaskedState([], config, self.model.config, self.bos_id, self.image_id, self.reencode)

    @torch.inference_mode()
    def step(self, state: MaskedState) -> None:
        """As `Sampler.step`."""
        batch, outputs = self.see(state)
        state.move_images(batch.image_I, batch.full_images, batch.inputs, outputs)
        self._settle(state, batch, batch.guided(outputs.logits_RV))
        state.age_B += 1
        state.step += 1

    def _settle(self, state: MaskedState, batch: Batch, logits_SV: Tensor) -> None:
        """Draws a token for every mask and keeps as many as the schedule has by now."""
        then_B = state.next_time(state.text_time_B, state.steps_B)
        logits_SV = logits_SV.float().cpu().clone()
        logits_SV[:, [self.image_id, self.model.config.mask_id]] = -torch.inf
        document_S = state.elements.document_E[batch.slot_element_S]
        sizes = np.bincount(document_S, minlength=len(state.requests))
        draws = np.concatenate(
            [rng.random((2, n)) for rng, n in zip(state.rng_B, sizes, strict=True)], axis=1
        )
        token_S = draw(logits_SV, draws[0], state.config, state.temperature_B[document_S])
        rank_S: NDArray[np.float64] = draws[1]
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
