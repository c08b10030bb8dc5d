"""The sampler of AR + FM: token after token, an image by Euler steps where its anchor comes (Transfusion).

What has been settled is never computed again: its keys and values stay in a cache. A pass takes one token of every
document that writes, and the whole image of every document that draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.layout import IMAGE, TOKEN, Elements, Layout, join, lay_out
from oneflow_core.model.attention import AttentionPlan, Rows
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.inputs import to_device
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.ragged import runs
from oneflow_core.sampling.draw import draw, guided
from oneflow_core.sampling.forward import image_alone
from oneflow_core.sampling.media import Media
from oneflow_core.sampling.reencoding import as_shown, encode_finished
from oneflow_core.sampling.types import Generation, Reencode, Request, SamplerConfig


class CausalState(Media):
    """Documents in the making. Full copies are numbers 0 to B - 1; unprompted ones, for guidance, follow.

    `feed` is what each copy shows the network next, None when there is nothing; `rows` are its rows of the cache.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        config: SamplerConfig,
        model: OneFlowModel,
        bos_id: int,
        image_id: int,
        reencode: Reencode | None = None,
    ) -> None:
        super().__init__(requests, config, model.config, bos_id, image_id, reencode)
        weight = model.embedding.weight
        self.cache = KeyValueCache(model.config, device=weight.device, dtype=weight.dtype)
        self.copies = len(requests) * (2 if config.text_guidance else 1)
        self.rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * self.copies
        self.used = 0
        whole = self.start()
        self.made: list[list[tuple[int, int, int]]] = [[] for _ in requests]
        """Token, block and step of every generated element."""
        self.feed: list[Elements | None] = []
        for copy in range(self.copies):
            b = copy % len(requests)
            mine = whole.take(whole.document_E == b)
            shown = mine.take(mine.prompt_E if copy < len(requests) else np.arange(1))
            shown.document_E, shown.slot_E = np.full(len(shown), copy), np.zeros(len(shown), bool)
            shown.slot_E[-1] = requests[b].target != "image"
            self.feed.append(shown)
            if copy == b and requests[b].target == "image":
                self.made[b].append((image_id, int(mine.block_E[-1]), 0))

    @property
    def drawing_B(self) -> NDArray[np.int64]:
        """Block of the image that each document is drawing, or -1."""
        block_B = np.full(len(self.requests), -1)
        flowing = self.images_in_flow
        block_B[np.array(self.image_document, int)[flowing]] = flowing
        return block_B

    def show(self, b: int, kind: int, token: int, block: int, slot: bool) -> None:
        """All copies of document b show this element next."""
        for copy in range(b, self.copies, len(self.requests)):
            self.feed[copy] = Elements(
                np.array([copy]),
                np.array([kind]),
                np.array([token]),
                np.array([block]),
                np.array([False]),
                np.array([slot]),
                np.array([0]),
            )

    def finish(self) -> list[Generation]:
        """The documents as they stand; times are places in the document."""
        return [self._finished(b) for b in range(len(self.requests))]

    def _finished(self, b: int) -> Generation:
        count = len(self.made[b])
        token, block, step = np.array(self.made[b], np.int64).reshape(count, 3).T
        elements = Elements(
            np.full(count, b),
            np.where(block >= 0, IMAGE, TOKEN),
            token,
            block,
            np.zeros(count, bool),
            np.ones(count, bool),
            np.zeros(count, np.int64),
        )
        return self.generation(b, elements, (np.arange(count) + 1) / max(count, 1), step)


class CausalSampler:
    """Generates documents with a model of the transfusion objective; see `Sampler`."""

    def __init__(
        self, model: OneFlowModel, *, bos_id: int, image_id: int, reencode: Reencode | None = None
    ) -> None:
        self.model, self.bos_id, self.image_id, self.reencode = model, bos_id, image_id, reencode

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        config: SamplerConfig | None = None,
        observe: Callable[[CausalState], None] | None = None,
    ) -> list[Generation]:
        """As `Sampler.generate`: a pass a token, `config.steps` and one a generated image."""
        config = config or SamplerConfig()
        state = CausalState(requests, config, self.model, self.bos_id, self.image_id, self.reencode)
        while any(f is not None for f in state.feed) or (state.drawing_B >= 0).any():
            self._pass(state)
            state.step += 1
            if observe:
                observe(state)
        return state.finish()

    def _pass(self, state: CausalState) -> None:
        """Shows every document its next element; draws the next token, or moves the image."""
        count = len(state.requests)
        shown_C = np.array([f is not None for f in state.feed])
        flowing = [i for b, i in enumerate(state.drawing_B.tolist()) if i >= 0 and not shown_C[b]]
        fed = [f for f in state.feed if f is not None]
        parts = sorted(fed + self._moving(state, flowing), key=lambda e: int(e.document_E[0]))
        encode_finished(state, shown_C[:count])
        elements = as_shown(state, join(parts))
        layout = lay_out(elements, state.patches_I, state.features_U)
        plan, written_T = self._plan(state, layout, shown_C)
        before = [len(r) for r in state.rows] + [0] * len(flowing)
        layout.position_T = layout.position_T + np.array(before)[layout.document_T]
        inputs = state.inputs(layout, plan, np.ones(len(layout.token_T)))
        inputs = to_device(inputs, self.model.embedding.weight.device)
        outputs = self.model(inputs, state.cache)
        state.passes_B[np.unique(layout.document_T[layout.document_T < count])] += 1
        for copy in np.flatnonzero(shown_C).tolist():
            state.rows[copy] = np.r_[state.rows[copy], written_T[layout.document_T == copy]]
            state.feed[copy] = None
        full = int((elements.kind_E[elements.document_E < count] == IMAGE).sum())
        state.move_images(layout.image_I, full, inputs, outputs, lambda _: None)
        self._finish_images(state, flowing)
        self._write(state, layout.document_T[layout.slot_S], outputs.logits_RV)

    def _moving(self, state: CausalState, flowing: Sequence[int]) -> list[Elements]:
        """The images in flow behind what is cached of their documents, and alone where guidance is on."""
        parts = []
        for number, block in enumerate(flowing):
            alone = image_alone(state, block, state.copies + number)
            behind = alone.take(np.array([1]))
            behind.document_E = np.array([state.image_document[block]])
            parts += [behind] if state.config.image_guidance == 1 else [behind, alone]
        return parts

    def _plan(
        self, state: CausalState, layout: Layout, shown_C: NDArray[np.bool_]
    ) -> tuple[AttentionPlan, NDArray[np.int64]]:
        """Attention to what is cached and to the pass itself; and the row that each token is written to.

        Rows of what is settled come first, so that those of images in flow are free again for the next pass.
        """
        start_B, length_B = runs(layout.document_T)
        settled_T = np.append(shown_C, np.zeros(len(start_B), bool))[layout.document_T]
        order = np.argsort(~settled_T, kind="stable")
        written_T = np.empty(len(order), np.int64)
        written_T[order] = state.used + np.arange(len(order))
        state.cache.reserve(state.used + len(order))
        state.used += int(settled_T.sum())
        keys, key_orders = [], []
        for d, start, length in zip(
            layout.document_T[start_B].tolist(), start_B.tolist(), length_B.tolist(), strict=True
        ):
            cached = state.rows[d] if d < state.copies else np.zeros(0, np.int64)
            keys.append(np.r_[cached, written_T[start : start + length]])
            key_orders.append(np.r_[np.full(len(cached), -1), layout.element_T[start : start + length]])
        keys_B = np.array([len(k) for k in keys])
        rows = Rows(length_B, keys_B, np.concatenate(keys), layout.element_T, np.concatenate(key_orders))
        plan = AttentionPlan.of_rows(rows, layout.document_T)
        plan.write_T = torch.from_numpy(written_T)
        return plan, written_T

    def _finish_images(self, state: CausalState, flowing: Sequence[int]) -> None:
        """A finished image is shown once more, at its last time or re-encoded, unless the document ends with it."""
        for block in flowing:
            b = state.image_document[block]
            if state.image_time[block] >= 1 and state.requests[b].target != "image":
                state.show(b, IMAGE, self.image_id, block, slot=True)

    def _write(self, state: CausalState, document_S: NDArray[np.int64], logits_SV: Tensor | None) -> None:
        """Draws the next token of every document that has shown one; the end symbol ends it."""
        documents = document_S[document_S < len(state.requests)].tolist()
        if not documents:
            return
        logits_FV = guided(logits_SV, len(documents), state.config.text_guidance).float().cpu().clone()
        for f, b in enumerate(documents):
            images = sum(block >= 0 for _, block, _ in state.made[b])
            if state.requests[b].target != "document" or images >= state.config.max_images:
                logits_FV[f, self.image_id] = -torch.inf
        draws_F = np.array([state.rng_B[b].random() for b in documents])
        for b, token in zip(documents, draw(logits_FV, draws_F, state.config).tolist(), strict=True):
            if token == self.bos_id or len(state.made[b]) >= state.config.max_tokens:
                continue
            block = state.add_image(b) if token == self.image_id else -1
            state.made[b].append((token, block, state.step))
            if block < 0:
                state.show(b, TOKEN, token, -1, slot=True)
