"""The running batch of the insertion sampler: what the network said of each document's gaps, and when they fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oneflow_core.layout import Elements
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.sampling.documents import BoolArray, FloatArray, IntArray
from oneflow_core.sampling.draw import guided
from oneflow_core.sampling.growing import Growing
from oneflow_core.sampling.types import Reencode, Request, SamplerConfig


@dataclass
class Words:
    """Vocabulary logits of one pass. They are many, and few gaps fire: those are computed when they do."""

    outputs: ModelOutputs
    device: torch.device
    guidance_S: FloatArray
    """w of each slot of a full copy; the weak copies' rows follow in the same order, of slots whose w is not 0."""

    def take(self, slot_F: IntArray) -> Tensor:
        """Guided logits of these slots, [F, V]."""
        weak_S = len(self.guidance_S) + np.cumsum(self.guidance_S != 0) - 1
        w_F = self.guidance_S[slot_F]
        rows = np.append(slot_F, weak_S[slot_F[w_F != 0]])
        return guided(self.outputs.logits_at(torch.from_numpy(rows).to(self.device)), w_F)


@dataclass
class Gaps:
    """What the network said of one document's gaps, guidance included. S slots."""

    missing_S: Tensor
    """Logit of 1 - pi."""
    rate_S: Tensor
    words: Words
    """Of all documents of the pass."""
    first: int
    """Slot of the pass that is this document's first."""
    delete_S: Tensor | None = None
    """Logit that the slot's own element does not belong, where counts are free."""


class State(Growing):
    """Documents in the making. B documents, E elements.

    `changed_B` marks documents that are not what the network saw last; `gaps_B` is what it said of the others. A
    network that is not told the text's time stays with what it said until the document changes.
    """

    LATE = True
    BY_DOCUMENT = (*Growing.BY_DOCUMENT, "flush_B", "changed_B", "gaps_B")

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
        self.flush_B: IntArray = np.zeros(0, np.int64)
        self.changed_B: BoolArray = np.zeros(0, bool)
        self.gaps_B: list[Gaps | None] = []
        self.join(requests)

    def join(
        self, requests: Sequence[Request], configs: Sequence[SamplerConfig] | None = None
    ) -> Elements | None:
        """As `Growing.join`."""
        new, count = super().join(requests, configs), len(requests)
        self.extend(
            flush_B=[0 if r.target == "image" else self.config.flush for r in requests],
            changed_B=[True] * count,
            gaps_B=[None] * count,
        )
        return new

    @property
    def active_B(self) -> BoolArray:
        """Documents that another pass may still change."""
        active = (self.text_time_B < 1) | (self.flush_B > 0)
        active[self.image_document[self.images_in_flow]] = True
        return active

    @property
    def waiting_B(self) -> BoolArray:
        """Documents whose text has not begun: their images, which moved just now, stood before `text_delay`."""
        waiting = np.zeros(len(self.requests), bool)
        unbegun_B = (self.images_B > 0) & (self.text_time_B == 0)
        if unbegun_B.any():
            delay_B = np.full(len(self.requests), self.config.text_delay)
            begins_B = self.next_time(delay_B, self.steps_B)
            early_I = self.image_time < begins_B[self.image_document] - 1e-9
            waiting[self.image_document[early_I]] = True
        return waiting & unbegun_B

    @property
    def due_B(self) -> BoolArray:
        """Documents that the network must see again: active, and changed since it last did."""
        return self.active_B & self.changed_B
