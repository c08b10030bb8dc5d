"""The running batch of the insertion sampler: ragged documents as flat arrays, and the surgery of a step on them.

Nothing here loops over tokens; loops go over documents or images only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.layout import IMAGE, TOKEN, Elements
from oneflow_core.model.config import ModelConfig
from oneflow_core.sampling.media import Media
from oneflow_core.sampling.types import Generation, Reencode, Request, SamplerConfig


@dataclass
class Gaps:
    """What the network said of one document's gaps, guidance included. S slots."""

    missing_S: Tensor
    """Logit of 1 - pi."""
    rate_S: Tensor
    logits_SV: Tensor
    delete_S: Tensor | None = None
    """Logit that the slot's own element does not belong, where counts are free."""


class State(Media):
    """Documents in the making. B documents, E elements.

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
        reencode: Reencode | None = None,
    ) -> None:
        super().__init__(requests, config, model, bos_id, image_id, reencode)
        self.text_time_B = np.array([1.0 if r.target == "image" else 0.0 for r in requests])
        self.flush_B = np.array([0 if r.target == "image" else config.flush for r in requests])
        self.changed_B = np.ones(len(requests), bool)
        self.gaps_B: list[Gaps | None] = [None] * len(requests)
        self.elements = self.start()
        self.born_E = np.where(self.elements.prompt_E, -1.0, 0.0)
        self.born_step_E = np.where(self.elements.prompt_E, -1, 0)
        self.deleted_B = np.zeros(len(requests), np.int64)

    @property
    def active_B(self) -> NDArray[np.bool_]:
        """Documents that another pass may still change."""
        active = (self.text_time_B < 1) | (self.flush_B > 0)
        active[np.array(self.image_document, int)[self.images_in_flow]] = True
        return active

    @property
    def waiting_B(self) -> NDArray[np.bool_]:
        """Documents whose text has not begun: their images, which moved just now, stood before `text_delay`."""
        waiting = np.zeros(len(self.requests), bool)
        begins = float(self.next_time(np.array(self.config.text_delay)))
        for time, b in zip(self.image_time, self.image_document, strict=True):
            waiting[b] |= self.requests[b].images > 0 and self.text_time_B[b] == 0 and time < begins - 1e-9
        return waiting

    @property
    def due_B(self) -> NDArray[np.bool_]:
        """Documents that the network must see again: active, and changed since it last did."""
        due: NDArray[np.bool_] = self.active_B & self.changed_B
        return due

    def mark(self, b: int) -> None:
        """Document b is not what the network saw last."""
        self.changed_B[b] = True

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
            np.insert(e.copy_E, where, 0),
        )
        self.born_E = np.insert(self.born_E, where, self.text_time_B[document])
        self.born_step_E = np.insert(self.born_step_E, where, self.step)

    def delete(self, at: NDArray[np.int64]) -> None:
        """Takes out the elements `at`; they must be generated tokens."""
        if not len(at):
            return
        self.deleted_B += np.bincount(self.elements.document_E[at], minlength=len(self.requests))
        left_E = np.ones(len(self.elements), bool)
        left_E[at] = False
        self.elements = self.elements.take(left_E)
        self.born_E, self.born_step_E = self.born_E[left_E], self.born_step_E[left_E]

    def finish(self) -> list[Generation]:
        """The documents as they stand."""
        e = self.elements
        mine = [(e.document_E == b) & ~e.prompt_E for b in range(len(self.requests))]
        return [
            self.generation(b, e.take(m), self.born_E[m], self.born_step_E[m], int(self.deleted_B[b]))
            for b, m in enumerate(mine)
        ]
