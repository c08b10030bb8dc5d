"""The running batch: ragged documents as flat arrays of elements, which join, grow and leave.

Nothing here loops over tokens; loops go over documents or images only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneflow_core.layout import IMAGE, TOKEN, Elements, join
from oneflow_core.model.config import ModelConfig
from oneflow_core.sampling.documents import BoolArray, FloatArray, IntArray
from oneflow_core.sampling.media import Media
from oneflow_core.sampling.prefix import PrefixCache
from oneflow_core.sampling.types import Generation, Reencode, Request, SamplerConfig, Trace


class Written(NamedTuple):
    """What was generated of one document so far, in reading order. W elements."""

    id_W: IntArray
    """Never changes and never comes again in this document."""
    token_W: IntArray
    block_W: IntArray
    """Block of an image, or -1."""
    time_W: FloatArray
    step_W: IntArray


class Growing(Media, ABC):
    """Documents in the making. B documents, E elements."""

    BY_DOCUMENT = (*Media.BY_DOCUMENT, "text_time_B", "ids_B", "deleted_B")
    BY_ELEMENT: ClassVar[tuple[str, ...]] = ("born_E", "born_step_E", "id_E")

    def __init__(
        self,
        config: SamplerConfig,
        model: ModelConfig,
        bos_id: int,
        image_id: int,
        reencode: Reencode | None = None,
    ) -> None:
        super().__init__(config, model, bos_id, image_id, reencode)
        none = np.zeros(0, np.int64)
        self.elements = Elements(none, none, none, none, none.astype(bool), none.astype(bool), none)
        self.text_time_B: FloatArray = np.zeros(0)
        self.ids_B: IntArray = none
        """Ids of elements that each document has given out."""
        self.deleted_B: IntArray = none
        self.born_E: FloatArray = np.zeros(0)
        self.born_step_E: IntArray = none
        self.id_E: IntArray = none
        """Number of each generated element within its document, in the order of insertion; -1 for prompts."""
        self.prefixes: PrefixCache | None = None

    @property
    @abstractmethod
    def active_B(self) -> BoolArray:
        """Documents that another step may still change."""

    @property
    @abstractmethod
    def due_B(self) -> BoolArray:
        """Documents that the network must see."""

    def check(self, request: Request) -> None:
        """Raises ValueError for what this objective cannot make."""

    def join(
        self, requests: Sequence[Request], configs: Sequence[SamplerConfig] | None = None
    ) -> Elements | None:
        """These documents take part from the next step on; returns their elements, None if there are none.

        Args:
            requests: ragged prompts and targets, any mixture.
            configs: one for each, alike but for the settings in `OWN`; None: that of the batch.

        Raises:
            ValueError: a shared setting that differs, or a target that the objective cannot make.
        """
        for request in requests:
            self.check(request)
        if not requests:
            return None
        new = self.begin(requests, configs or [self.config] * len(requests), self.first_text())
        generated = ~new.prompt_E
        made = np.bincount(new.document_E[generated], minlength=len(self.requests))[-len(requests) :]
        count = len(requests)
        self.extend(
            text_time_B=self.image_only_B[-count:].astype(float),
            ids_B=made,
            deleted_B=np.zeros(count, np.int64),
        )
        place = np.cumsum(generated) - 1
        before = np.cumsum(made) - made
        id_E = place - before[new.document_E - new.document_E[0]]
        self.elements = join([self.elements, new])
        self.extend(
            born_E=np.where(generated, 0.0, -1.0),
            born_step_E=np.where(generated, 0, -1),
            id_E=np.where(generated, id_E, -1),
        )
        return new

    def first_text(self) -> Sequence[int]:
        """The text that a document begins with."""
        return ()

    def keep(self, left_B: BoolArray) -> None:
        """Documents outside `left_B` leave, and with them all that there is of them."""
        left_E = left_B[self.elements.document_E]
        self.elements = self.elements.take(left_E)
        for name in self.BY_ELEMENT:
            setattr(self, name, getattr(self, name)[left_E])
        self.keep_media(left_B, self.elements)
        if self.prefixes:
            self.prefixes.keep(left_B)
        super().keep(left_B)

    def bounds(self, b: int) -> tuple[int, int]:
        """Where the elements of document b begin and end."""
        first, end = np.searchsorted(self.elements.document_E, [b, b + 1]).tolist()
        return first, end

    def generated_tokens(self) -> IntArray:
        """Generated elements of each document so far."""
        return np.bincount(self.elements.document_E[~self.elements.prompt_E], minlength=len(self.requests))

    def insert(self, at: IntArray, token: IntArray) -> None:
        """Puts token i to the right of element `at[i]` (ascending, distinct); an anchor starts an image there."""
        if not len(at):
            return
        e, document = self.elements, self.elements.document_E[at]
        image = token == self.image_id
        block = np.full(len(at), -1)
        block[image] = [self.add_image(b) for b in document[image].tolist()]
        put = _Insertion(at, len(e))
        self.elements = Elements(
            put(e.document_E, document),
            put(e.kind_E, np.where(image, IMAGE, TOKEN)),
            put(e.token_E, token),
            put(e.block_E, block),
            put(e.prompt_E, False),
            put(e.slot_E, True),
            put(e.copy_E, 0),
        )
        count_B = np.bincount(document, minlength=len(self.requests))
        rank = np.arange(len(at)) - (np.cumsum(count_B) - count_B)[document]
        self.id_E = put(self.id_E, self.ids_B[document] + rank)
        self.ids_B = self.ids_B + count_B
        self.born_E = put(self.born_E, self.text_time_B[document])
        self.born_step_E = put(self.born_step_E, self.age_B[document])

    def delete(self, at: IntArray) -> None:
        """Takes out the elements `at`; they must be generated tokens."""
        if not len(at):
            return
        self.deleted_B = self.deleted_B + np.bincount(
            self.elements.document_E[at], minlength=len(self.requests)
        )
        left_E = np.ones(len(self.elements), bool)
        left_E[at] = False
        self.elements = self.elements.take(left_E)
        for name in self.BY_ELEMENT:
            setattr(self, name, getattr(self, name)[left_E])

    def made(self, b: int) -> IntArray:
        """The elements of document b that were generated and count, in order."""
        first, end = self.bounds(b)
        return first + np.flatnonzero(~self.elements.prompt_E[first:end])

    def written(self, b: int) -> Written:
        """What there is of document b now."""
        at, e = self.made(b), self.elements
        block_W = np.where(e.kind_E[at] == IMAGE, e.block_E[at], -1)
        return Written(self.id_E[at], e.token_E[at], block_W, self.born_E[at], self.born_step_E[at])

    def births(self, b: int, at: IntArray) -> FloatArray:
        """Times of the elements `at` of a finished document."""
        return self.born_E[at]

    def finish(self, documents: Iterable[int] | None = None) -> list[Generation]:
        """The documents as they stand; None: all."""
        return [self._finished(b) for b in (range(len(self.requests)) if documents is None else documents)]

    def _finished(self, b: int) -> Generation:
        at = self.made(b)
        made = self.elements.take(at)
        segments: list[tuple[int, ...] | NDArray[np.float32]] = []
        cuts = np.flatnonzero((made.kind_E[1:] == IMAGE) | (made.kind_E[:-1] == IMAGE)) + 1
        for run in np.split(np.arange(len(made)), cuts):
            if not len(run):
                continue
            if made.kind_E[run[0]] == IMAGE:
                segments.append(self.latent(int(made.block_E[run[0]])).numpy())
            else:
                segments.append(tuple(made.token_E[run].tolist()))
        times, steps = tuple(self.births(b, at).tolist()), tuple(self.born_step_E[at].tolist())
        blocks = made.block_E[made.kind_E == IMAGE].tolist() if self.config.trace_images else []
        states = tuple(tuple(self.image_states[i]) for i in blocks)
        counts = int(self.passes_B[b]), int(self.deleted_B[b])
        return Generation(tuple(segments), Trace(tuple(made.token_E.tolist()), times, steps, *counts, states))


class _Insertion:
    """Where new entries go in arrays along E."""

    def __init__(self, at: IntArray, count: int) -> None:
        self._new = at + 1 + np.arange(len(at))
        self._old = np.ones(count + len(at), bool)
        self._old[self._new] = False

    def __call__(self, held_E: NDArray, new: NDArray | bool | int) -> NDArray:
        """`held_E` with the new entries."""
        out = np.empty(len(self._old), held_E.dtype)
        out[self._old] = held_E
        out[self._new] = new
        return out
