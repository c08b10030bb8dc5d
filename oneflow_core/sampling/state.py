"""The running batch: ragged documents as flat arrays, and the surgery of a step on them.

Nothing here loops over tokens; loops go over documents or images only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.image import unpatchify
from oneflow_core.layout import FEATURES, IMAGE, TOKEN, Elements
from oneflow_core.model.config import ModelConfig
from oneflow_core.sampling.types import Generation, Request, SamplerConfig, Trace


@dataclass
class Gaps:
    """What the network said of one document's gaps, guidance included. S slots."""

    missing_S: Tensor
    """Logit of 1 - pi."""
    rate_S: Tensor
    logits_SV: Tensor


class State:
    """Documents in the making. B documents, E elements, I generated images.

    `changed_B` marks documents that are not what the network saw last; `gaps_B` is what it said of the others. A
    network that is not told the text's time stays with what it said until the document changes.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        config: SamplerConfig,
        model: ModelConfig,
        bos_id: int,
        image_id: int,
    ) -> None:
        self.requests, self.config, self.model = list(requests), config, model
        self.bos_id, self.image_id = bos_id, image_id
        self.rng_B = [np.random.default_rng(r.seed) for r in requests]
        self.features: list[NDArray[np.float32]] = []
        self.patches: list[Tensor] = []
        self.image_time: list[float] = []
        self.image_document: list[int] = []
        self.text_time_B = np.array([1.0 if r.target == "image" else 0.0 for r in requests])
        self.flush_B = np.array([0 if r.target == "image" else config.flush for r in requests])
        self.passes_B = np.zeros(len(requests), np.int64)
        self.changed_B = np.ones(len(requests), bool)
        self.gaps_B: list[Gaps | None] = [None] * len(requests)
        self.step = 0
        starts = [self._start(b, r) for b, r in enumerate(requests)]
        self.elements = join(starts)
        self.born_E = np.where(self.elements.prompt_E, -1.0, 0.0)
        self.born_step_E = np.where(self.elements.prompt_E, -1, 0)

    def _start(self, b: int, request: Request) -> Elements:
        kind, token, block = [TOKEN], [self.bos_id], [-1]
        for part in request.prompt:
            if isinstance(part, tuple):
                kind += [TOKEN] * len(part)
                token += part
                block += [-1] * len(part)
            else:
                kind.append(FEATURES)
                token.append(self.image_id)
                block.append(len(self.features))
                self.features.append(np.asarray(part, np.float32))
        prompt_E = np.ones(len(kind), bool)
        slot_E = np.zeros(len(kind), bool)
        if request.target == "image":
            kind.append(IMAGE)
            token.append(self.image_id)
            block.append(self.add_image(b))
            prompt_E, slot_E = np.r_[prompt_E, False], np.r_[slot_E, False]
        else:
            slot_E[-1] = True
        size = len(kind)
        return Elements(np.full(size, b), np.array(kind), np.array(token), np.array(block), prompt_E, slot_E)

    def add_image(self, b: int) -> int:
        """Starts an image of pure noise in document b; returns its block index."""
        rows, cols = self.requests[b].grid
        noise = self.rng_B[b].standard_normal((rows * cols, self.model.patch_dim), np.float32)
        self.patches.append(torch.from_numpy(noise))
        self.image_time.append(0.0)
        self.image_document.append(b)
        return len(self.patches) - 1

    @property
    def images_in_flow(self) -> NDArray[np.int64]:
        """Blocks of images whose time is below 1."""
        return np.flatnonzero(np.array(self.image_time, float) < 1)

    @property
    def active_B(self) -> NDArray[np.bool_]:
        """Documents that another pass may still change."""
        active = (self.text_time_B < 1) | (self.flush_B > 0)
        active[np.array(self.image_document, int)[self.images_in_flow]] = True
        return active

    @property
    def due_B(self) -> NDArray[np.bool_]:
        """Documents that the network must see again: active, and changed since it last did."""
        due: NDArray[np.bool_] = self.active_B & self.changed_B
        return due

    def generated_tokens(self) -> NDArray[np.int64]:
        """Generated elements of each document so far."""
        return np.bincount(self.elements.document_E[~self.elements.prompt_E], minlength=len(self.requests))

    def insert(self, at: NDArray[np.int64], token: NDArray[np.int64]) -> None:
        """Puts token i to the right of element `at[i]` (ascending, distinct); an anchor starts an image there."""
        if not len(at):
            return
        e = self.elements
        document = e.document_E[at]
        image = token == self.image_id
        block = np.full(len(at), -1)
        block[image] = [self.add_image(int(b)) for b in document[image]]
        where = at + 1
        yes = np.ones(len(at), bool)
        self.elements = Elements(
            np.insert(e.document_E, where, document),
            np.insert(e.kind_E, where, np.where(image, IMAGE, TOKEN)),
            np.insert(e.token_E, where, token),
            np.insert(e.block_E, where, block),
            np.insert(e.prompt_E, where, ~yes),
            np.insert(e.slot_E, where, yes),
        )
        self.born_E = np.insert(self.born_E, where, self.text_time_B[document])
        self.born_step_E = np.insert(self.born_step_E, where, self.step)

    def finish(self) -> list[Generation]:
        """The documents as they stand."""
        return [self._generation(b) for b in range(len(self.requests))]

    def _generation(self, b: int) -> Generation:
        mine = (self.elements.document_E == b) & ~self.elements.prompt_E
        e = self.elements.take(mine)
        segments: list[tuple[int, ...] | NDArray[np.float32]] = []
        cuts = np.flatnonzero((e.kind_E[1:] == IMAGE) | (e.kind_E[:-1] == IMAGE)) + 1
        for run in np.split(np.arange(len(e)), cuts):
            if not len(run):
                continue
            if e.kind_E[run[0]] == IMAGE:
                rows, cols = self.requests[b].grid
                patches = self.patches[e.block_E[run[0]]] * self.model.latent_scale
                segments.append(unpatchify(patches, rows, cols, self.model.patch).numpy())
            else:
                segments.append(tuple(e.token_E[run].tolist()))
        born, step = self.born_E[mine].tolist(), self.born_step_E[mine].tolist()
        trace = Trace(tuple(e.token_E.tolist()), tuple(born), tuple(step), int(self.passes_B[b]))
        return Generation(tuple(segments), trace)


def join(parts: Sequence[Elements]) -> Elements:
    """Concatenates elements; the document numbers must already be in order."""
    return Elements(
        np.concatenate([p.document_E for p in parts]).astype(np.int64),
        np.concatenate([p.kind_E for p in parts]).astype(np.int64),
        np.concatenate([p.token_E for p in parts]).astype(np.int64),
        np.concatenate([p.block_E for p in parts]).astype(np.int64),
        np.concatenate([p.prompt_E for p in parts]).astype(bool),
        np.concatenate([p.slot_E for p in parts]).astype(bool),
    )
