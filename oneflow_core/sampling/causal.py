"""The sampler of AR + FM: token after token, an image by Euler steps where its anchor comes (Transfusion).

What has been settled is never computed again: its keys and values stay in a cache. A pass takes one token of every
document that writes, and the whole image of every document that draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oneflow_core.layout import IMAGE, Elements, Layout, join, lay_out
from oneflow_core.model.attention import AttentionPlan, Rows
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.inputs import to_device
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.ragged import ragged_range, runs
from oneflow_core.sampling.base import Sampler
from oneflow_core.sampling.documents import BoolArray, FloatArray, IntArray
from oneflow_core.sampling.draw import draw, guided
from oneflow_core.sampling.forward import images_alone, unprompted
from oneflow_core.sampling.growing import Growing
from oneflow_core.sampling.reencoding import as_shown, encode_finished
from oneflow_core.sampling.rows import Rows as CacheRows
from oneflow_core.sampling.types import Reencode, Request, SamplerConfig

NONE = np.zeros(0, np.int64)


class CausalState(Growing):
    """Documents in the making. In a pass, b is document b, B + b its copy without the prompt, for guidance.

    `shown_E` says what the network has seen for good; `row_B` and `weak_row_B` are its rows of the cache.
    """

    BY_DOCUMENT = (*Growing.BY_DOCUMENT, "row_B", "weak_row_B")
    BY_ELEMENT = (*Growing.BY_ELEMENT, "shown_E")

    def __init__(
        self,
        requests: Sequence[Request],
        config: SamplerConfig,
        model: OneFlowModel,
        bos_id: int,
        image_id: int,
        reencode: Reencode | None = None,
    ) -> None:
        super().__init__(config, model.config, bos_id, image_id, reencode)
        weight = model.embedding.weight
        self.rows = CacheRows(KeyValueCache(model.config, device=weight.device, dtype=weight.dtype))
        self.row_B: list[IntArray] = []
        self.weak_row_B: list[IntArray] = []
        self.shown_E: BoolArray = np.zeros(0, bool)
        self.join(requests)

    def join(
        self, requests: Sequence[Request], configs: Sequence[SamplerConfig] | None = None
    ) -> Elements | None:
        """As `Growing.join`."""
        new, count = super().join(requests, configs), len(requests)
        shown = [] if new is None else [False] * len(new)
        self.extend(row_B=[NONE] * count, weak_row_B=[NONE] * count, shown_E=shown)
        return new

    def keep(self, left_B: BoolArray) -> None:
        """As `Growing.keep`; rows of the cache are free for others."""
        gone = np.flatnonzero(~left_B).tolist()
        self.rows.give(np.concatenate([NONE, *(r[b] for r in (self.row_B, self.weak_row_B) for b in gone)]))
        super().keep(left_B)

    def insert(self, at: IntArray, token: IntArray) -> None:
        """As `Growing.insert`; what is new has not been shown."""
        super().insert(at, token)
        self.shown_E = np.insert(self.shown_E, at + 1, False)

    @property
    def flowing_E(self) -> BoolArray:
        """Images in flow."""
        flowing = self.elements.kind_E == IMAGE
        flowing[flowing] = self.image_time[self.elements.block_E[flowing]] < 1
        return flowing

    @property
    def feed_E(self) -> BoolArray:
        """What each document shows the network next, for good; an image that is the whole document is not."""
        ends_E = (self.elements.kind_E == IMAGE) & self.image_only_B[self.elements.document_E]
        return ~(self.shown_E | self.flowing_E | ends_E)

    @property
    def active_B(self) -> BoolArray:
        """Documents with something to show, or with an image in flow."""
        active = np.zeros(len(self.requests), bool)
        active[self.elements.document_E[self.feed_E | self.flowing_E]] = True
        return active

    @property
    def due_B(self) -> BoolArray:
        """All that are not done."""
        return self.active_B

    def births(self, b: int, at: IntArray) -> FloatArray:
        """Places in the document."""
        return (np.arange(len(at)) + 1) / max(len(at), 1)


class CausalSampler(Sampler[CausalState]):
    """Generates documents with a model of the transfusion objective: a pass a token, `steps` and one an image."""

    def empty(self, config: SamplerConfig) -> CausalState:
        """As `Sampler.empty`."""
        return CausalState([], config, self.model, self.bos_id, self.image_id, self.reencode)

    @torch.inference_mode()
    def step(self, state: CausalState) -> None:
        """As `Sampler.step`: shows every document's next element; draws the next token, or moves the image."""
        count, e = len(state.requests), state.elements
        feed_E = state.feed_E
        fed_B = np.zeros(count, bool)
        fed_B[e.document_E[feed_E]] = True
        shown_E = feed_E | (state.flowing_E & ~fed_B[e.document_E])
        encode_finished(state, fed_B)
        full = as_shown(state, e.take(shown_E))
        full.slot_E &= fed_B[full.document_E]
        layout = lay_out(join([full, *self._copies(state, full, fed_B)]), state.patches_I, state.features_U)
        held = [len(rows) for rows in (*state.row_B, *state.weak_row_B)]
        before = np.append(held, np.zeros(len(layout.image_I), np.int64)).astype(np.int64)
        layout.position_T = layout.position_T + before[layout.document_T]
        plan = self._plan(state, layout, np.tile(fed_B, 2))
        inputs = state.inputs(layout, plan, np.ones(len(layout.token_T)))
        inputs = to_device(inputs, self.model.embedding.weight.device)
        outputs = self.model(inputs, state.rows.cache)
        state.passes_B[np.unique(full.document_E)] += 1
        state.shown_E = state.shown_E | feed_E
        state.move_images(layout.image_I, int((full.kind_E == IMAGE).sum()), inputs, outputs)
        self._write(state, full.document_E[full.slot_E], outputs.logits_RV)
        state.age_B += 1
        state.step += 1

    def _copies(self, state: CausalState, full: Elements, fed_B: BoolArray) -> list[Elements]:
        """Weak copies: texts that are guided without their prompts, and images in flow alone."""
        count = len(state.requests)
        texts_B = fed_B & (state.text_guidance_B != 0) & ~state.image_only_B
        parts = [unprompted(True, full.take(texts_B[full.document_E]), count)] if texts_B.any() else []
        images_B = ~fed_B & (state.image_guidance_B != 1)
        if images_B.any():
            moving = full.block_E[images_B[full.document_E]]
            parts.append(images_alone(state, moving, 2 * count))
        return parts

    def _plan(self, state: CausalState, layout: Layout, fed_C: BoolArray) -> AttentionPlan:
        """Attention to what is cached and to the pass itself, whose tokens get rows of the cache.

        Those of what is shown for good stay; those of images in flow are free again for the next pass.
        """
        start_R, length_R = runs(layout.document_T)
        copy_R = layout.document_T[start_R]
        fed_R = np.append(fed_C, np.zeros(len(start_R), bool))[copy_R]
        written_T = state.rows.take(len(layout.token_T))
        state.rows.give(written_T[np.repeat(~fed_R, length_R)])
        held = [*state.row_B, *state.weak_row_B]
        cached = [held[d] if d < len(held) else NONE for d in copy_R.tolist()]
        cached_R = np.array([len(rows) for rows in cached], np.int64)
        flat = np.concatenate([*cached, written_T])
        order = np.concatenate([np.full(len(flat) - len(written_T), -1), layout.element_T])
        starts = np.stack([np.cumsum(cached_R) - cached_R, len(flat) - len(written_T) + start_R], 1)
        keys = ragged_range(starts.ravel(), np.stack([cached_R, length_R], 1).ravel())
        rows = Rows(length_R, cached_R + length_R, flat[keys], layout.element_T, order[keys])
        plan = AttentionPlan.of_rows(rows, layout.document_T)
        plan.write_T = torch.from_numpy(written_T)
        count = len(state.requests)
        for d, start, length in zip(
            copy_R[fed_R].tolist(), start_R[fed_R].tolist(), length_R[fed_R].tolist(), strict=True
        ):
            mine = state.row_B if d < count else state.weak_row_B
            mine[d % count] = np.concatenate([mine[d % count], written_T[start : start + length]])
        return plan

    def _write(self, state: CausalState, document_F: IntArray, logits_SV: Tensor | None) -> None:
        """Draws the next token of every document that has shown one; the end symbol ends it."""
        if not len(document_F):
            return
        logits_FV = guided(logits_SV, state.text_guidance_B[document_F]).float().cpu().clone()
        images_B = np.bincount(state.image_document, minlength=len(state.requests))
        full_F = torch.from_numpy((images_B >= state.max_images_B)[document_F])
        logits_FV[full_F, self.image_id] = -torch.inf
        draws_F = np.array([state.rng_B[b].random() for b in document_F.tolist()])
        token_F = draw(logits_FV, draws_F, state.config, state.temperature_B[document_F])
        made_B = state.generated_tokens()
        goes_on = (token_F != self.bos_id) & (made_B < state.max_tokens_B)[document_F]
        writing = document_F[goes_on]
        ends = np.searchsorted(state.elements.document_E, writing, "right") - 1
        state.insert(ends, token_F[goes_on])
        made_B = state.generated_tokens()
        state.text_time_B = np.where(state.image_only_B, 1.0, made_B / state.max_tokens_B)
