"""A model and its running batch, as a line drives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from oneflow_core.wire import told

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt
    from oneflow_core.running import ImageView, Options, Prepared, Snapshot


class ModelGone(RuntimeError):
    """The model is there no more: its process has ended, or it was closed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of a model, and what a request has to know of it."""

    identity: Mapping[str, str]
    image_size: int
    """Pixels along one side of the images that it makes."""
    places: int
    """Documents that are made at once."""


@dataclass(frozen=True, slots=True)
class Joining:
    """A document that is to take part."""

    prepared: Prepared
    watched: bool
    """Whether somebody wants to see it grow."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of the batch has brought."""

    joined: Sequence[int]
    """Those that take part from this step on."""
    size: int
    """Documents that were made together."""
    seconds: float
    done: Mapping[int, GeneratedDocument | Exception]
    """Those that are finished, or whose batch broke; they have left."""
    seen: Mapping[int, Snapshot]
    """What there is now of those that are watched, finished ones too."""


class Model(Protocol):
    """What a line needs. Whoever calls `step` is told of all that joined; all else may be called beside it."""

    facts: Facts

    def prepare(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: Sequence[Options]
    ) -> list[Prepared]:
        """As `RunningBatch.prepare`."""

    def join(self, key: int, joining: Joining) -> None:
        """It takes part from the next step on, or as soon as a place is free; `key` has not been used before."""

    def leave(self, key: int) -> None:
        """It is not wanted any more; one that has left already changes nothing."""

    def step(self) -> Step:
        """The next step that was made; waits while there is nothing to make.

        Raises:
            ModelGone: there will be none.
        """

    def picture(self, view: ImageView) -> Image:
        """As `RunningBatch.picture`."""

    def close(self) -> None:
        """Nothing is asked of it any more."""


class LocalModel:
    """A model in this process; its steps are made by whoever asks for them."""

    def __init__(self, pipeline: OneFlowPipeline, places: int) -> None:
        self._pipeline = pipeline
        self.facts = Facts(dict(pipeline.identity), pipeline.parts.image_size, places)
        self._state = threading.Condition()
        self._waiting: dict[int, Joining] = {}
        self._leaving: set[int] = set()
        self._closed = False
        self._empty()

    def _empty(self) -> None:
        from oneflow_core.running import RunningBatch

        self._batch = RunningBatch(self._pipeline)
        self._names: dict[int, int] = {}
        """Of those in the batch, by the key that they have there."""
        self._watched: set[int] = set()

    def prepare(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: Sequence[Options]
    ) -> list[Prepared]:
        """As `RunningBatch.prepare`."""
        return self._batch.prepare(prompts, seeds, options)

    def join(self, key: int, joining: Joining) -> None:
        """As `Model.join`."""
        with self._state:
            self._waiting[key] = joining
            self._state.notify_all()

    def leave(self, key: int) -> None:
        """As `Model.leave`."""
        with self._state:
            if self._waiting.pop(key, None) is None:
                self._leaving.add(key)
            self._state.notify_all()

    def step(self) -> Step:
        """As `Model.step`."""
        with self._state:
            self._state.wait_for(lambda: self._closed or self._waiting or self._leaving or self._names)
            if self._closed:
                raise ModelGone("the model was closed")
            leaving, self._leaving = self._leaving, set()
            left = sum(key not in leaving for key in self._names.values())
            joining = {key: self._waiting.pop(key) for key in list(self._waiting)[: self.facts.places - left]}
        started = time.perf_counter()
        try:
            self._depart(leaving)
            self._enter(joining)
            size = len(self._names)
            done, seen = self._made()
        except Exception as error:
            # What broke may have left the batch in pieces.
            broken: Exception = told(error, "in the batch")
            done, seen = dict.fromkeys([*self._names.values(), *joining], broken), {}
            size = len(done)
            self._empty()
        return Step(list(joining), size, time.perf_counter() - started, done, seen)

    def _depart(self, leaving: Collection[int]) -> None:
        gone = [b for b, key in self._names.items() if key in leaving]
        self._batch.leave(gone)
        for b in gone:
            del self._names[b]
        self._watched.difference_update(gone)

    def _enter(self, joining: Mapping[int, Joining]) -> None:
        entered = self._batch.join([j.prepared for j in joining.values()])
        self._names.update(zip(entered, joining, strict=True))
        self._watched.update(b for b, j in zip(entered, joining.values(), strict=True) if j.watched)

    def _made(self) -> tuple[dict[int, GeneratedDocument | Exception], dict[int, Snapshot]]:
        done = dict(self._batch.step())
        look = [b for b in self._watched if not isinstance(done.get(b), Exception)]
        seen = {self._names[b]: self._batch.look(b) for b in look}
        self._watched.difference_update(done)
        return {self._names.pop(b): made for b, made in done.items()}, seen

    def picture(self, view: ImageView) -> Image:
        """As `RunningBatch.picture`."""
        return self._batch.picture(view)

    def close(self) -> None:
        """Leaves everything to the garbage collector."""
        with self._state:
            self._closed = True
            self._state.notify_all()
