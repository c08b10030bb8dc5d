"""A batch of documents in the making that others may join at any step, and leave when they are done.

One thread at a time calls `join`, `step`, `leave` and `look`; `prepare` and `picture` may run beside them. A document
becomes what it would be alone, whatever shares the batch (up to the last bits in the network).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.encoders.identity import EncoderError
from oneflow_core.sampling.types import Generation, Request, SamplerConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt


@dataclass(frozen=True)
class Options:
    """How one document is made; None is the model's default."""

    steps: int | None = None
    guidance: float | None = None
    """Scale of the velocity (1 is off) where images are made, w of the insertion rates (0 is off) for a text."""
    temperature: float | None = None
    max_images: int | None = None
    max_tokens: int | None = None
    previews: bool = False
    """Whether `look` shows the images of this document as they are now."""


@dataclass(frozen=True)
class Prepared:
    """A document that is ready to join."""

    request: Request
    config: SamplerConfig
    previews: bool = False

    @property
    def tokens(self) -> int:
        """Of the prompt; an image counts as one."""
        return sum(len(s) if isinstance(s, tuple) else 1 for s in self.request.prompt)


@dataclass(frozen=True)
class Element:
    """A token or an image that was generated."""

    id: int
    """Its name in this document; it never changes and never comes again."""
    text: str
    """What the token says: U+FFFD where a character's bytes come as several tokens. An image says nothing."""
    time: float
    """Text time when it came to be, in [0, 1]."""
    step: int
    image: bool = False


@dataclass(frozen=True)
class ImageView:
    """An image as it is now."""

    time: float
    """t_img; 1 is done."""
    estimate: NDArray[np.float32]
    """Where the present velocity leads at t = 1, latents [C, h, w] in the scale of the codec."""


@dataclass(frozen=True)
class Snapshot:
    """What there is of a document."""

    step: int
    """Steps that the document has taken."""
    time: float
    """Text time, 0 to 1; under AR + FM the share of `max_tokens` that is written."""
    elements: tuple[Element, ...]
    """What was generated so far, in reading order."""
    images: Mapping[int, ImageView] = field(default_factory=dict)
    """By the id of the image's element, where `Options.previews` asked for them."""


@dataclass(frozen=True)
class Arrival:
    """An element that came, and its place among those that are there then."""

    position: int
    element: Element


@dataclass(frozen=True)
class Departure:
    """An element that was taken out, and its place among those that are there then."""

    position: int
    id: int


@dataclass(frozen=True)
class Changes:
    """From one snapshot to a later one: departures in their order, then arrivals in theirs.

    Each position counts on the list as it stands after the changes before it.
    """

    step: int
    time: float
    departures: tuple[Departure, ...]
    arrivals: tuple[Arrival, ...]


def changes(before: Snapshot | None, after: Snapshot) -> Changes:
    """What to do to the elements of `before` (None: nothing yet) to get those of `after`."""
    held = before.elements if before else ()
    stays = {e.id for e in held} & {e.id for e in after.elements}
    gone = [place for place, e in enumerate(held) if e.id not in stays]
    # Those before it in the list have left by then.
    departures = tuple(Departure(place - n, held[place].id) for n, place in enumerate(gone))
    # Taken from left to right, each comes where it will stay.
    arrivals = tuple(Arrival(place, e) for place, e in enumerate(after.elements) if e.id not in stays)
    return Changes(after.step, after.time, departures, arrivals)


class RunningBatch:
    """Documents in the making with one model."""

    def __init__(self, pipeline: OneFlowPipeline) -> None:
        self._pipeline = pipeline
        self._state = pipeline.sampler.begin(pipeline.defaults)
        self._numbers = itertools.count()
        self._keys: list[int] = []
        self._previews: list[bool] = []
        self._words: dict[int, str] = {}
        self._last: dict[int, Snapshot] = {}

    def __len__(self) -> int:
        """Documents that are not done."""
        return len(self._keys)

    def prepare(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: Sequence[Options]
    ) -> list[Prepared]:
        """Tokenises texts and encodes images, all of them together. Any thread may call it.

        Raises:
            ValueError: an option out of its range, or a target that this model cannot make.
        """
        configs = [self._pipeline.config(p.target, o) for p, o in zip(prompts, options, strict=True)]
        requests = self._pipeline.requests(prompts, seeds)
        for request in requests:
            self._state.check(request)
        parts = zip(requests, configs, options, strict=True)
        return [Prepared(request, config, o.previews) for request, config, o in parts]

    def join(self, prepared: Sequence[Prepared]) -> list[int]:
        """The documents take part from the next step on; returns a key for each."""
        self._state.join([p.request for p in prepared], [p.config for p in prepared])
        keys = list(itertools.islice(self._numbers, len(prepared)))
        self._keys += keys
        self._previews += [p.previews for p in prepared]
        return keys

    def step(self) -> list[tuple[int, GeneratedDocument | EncoderError]]:
        """One pass of the network for all; returns the documents that are done, which leave.

        In the place of one whose latents are not finite stands the error that says so.
        """
        self._last = {}
        if not self._keys:
            return []
        self._pipeline.sampler.step(self._state)
        active_B = self._state.active_B
        if active_B.all():
            return []
        done = np.flatnonzero(~active_B).tolist()
        keys = [self._keys[b] for b in done]
        made = self._state.finish(done)
        self._last = {key: self._snapshot(b) for key, b in zip(keys, done, strict=True)}
        self._keep(active_B)
        return list(zip(keys, self._decoded(made), strict=True))

    def leave(self, keys: Iterable[int]) -> None:
        """These documents are not wanted any more; their place is free. Keys of those that have left change nothing."""
        gone = set(keys)
        left_B = np.array([key not in gone for key in self._keys], bool)
        if not left_B.all():
            self._keep(left_B)

    def look(self, key: int) -> Snapshot:
        """What there is of a document now; of one that was done in the latest step, all of it.

        Raises:
            KeyError: a document that has left.
        """
        if key in self._last:
            return self._last[key]
        try:
            return self._snapshot(self._keys.index(key))
        except ValueError:
            raise KeyError(f"document {key} is not in this batch") from None

    def picture(self, view: ImageView) -> Image:
        """The image of an estimate, decoded. Any thread may call it."""
        return self._pipeline.pictures(torch.from_numpy(view.estimate)[None])[0]

    def _decoded(self, made: Sequence[Generation]) -> Sequence[GeneratedDocument | EncoderError]:
        """All at once; one by one where that fails, so that one which diverged takes no other with it."""
        try:
            return self._pipeline.documents(made)
        except EncoderError as error:
            if len(made) == 1:
                return [error]
        return [one for generation in made for one in self._decoded([generation])]

    def _keep(self, left_B: NDArray[np.bool_]) -> None:
        self._state.keep(left_B)
        self._keys = list(itertools.compress(self._keys, left_B))
        self._previews = list(itertools.compress(self._previews, left_B))

    def _snapshot(self, b: int) -> Snapshot:
        state, written = self._state, self._state.written(b)
        rows = [array.tolist() for array in written]
        elements = tuple(
            Element(id_, "" if block >= 0 else self._word(token), time, step, block >= 0)
            for id_, token, block, time, step in zip(*rows, strict=True)
        )
        images: dict[int, ImageView] = {}
        if self._previews[b]:
            for id_, block in zip(rows[0], rows[2], strict=True):
                if block >= 0:
                    images[id_] = ImageView(float(state.image_time[block]), state.estimate(block).numpy())
        return Snapshot(int(state.age_B[b]), float(state.text_time_B[b]), elements, images)

    def _word(self, token: int) -> str:
        if token not in self._words:
            self._words[token] = self._pipeline.parts.tokenizer.decode([token])
        return self._words[token]
