"""A model and its running batch, as a line drives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.encoders import EncoderError
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


@dataclass(frozen=True, slots=True)
class Joining:
    """A document that takes part from the next step on."""

    prepared: Prepared
    watched: bool
    """Whether somebody wants to see it grow."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step of the batch has brought."""

    keys: Sequence[int]
    """Of those who joined, in their order."""
    size: int
    """Documents that were made together."""
    done: Mapping[int, GeneratedDocument | EncoderError]
    """Those that are finished, and have left."""
    seen: Mapping[int, Snapshot]
    """What there is now of those that are watched, finished ones too."""


class Model(Protocol):
    """What a line needs. One thread takes turns, one prepares; pictures are made beside them."""

    facts: Facts

    def prepare(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: Sequence[Options]
    ) -> list[Prepared]:
        """As `RunningBatch.prepare`."""

    def turn(self, leaving: Sequence[int], joining: Sequence[Joining], meanwhile: Callable[[], None]) -> Turn:
        """One step, after some have left and some have joined; `meanwhile` is done beside it.

        What is raised has broken the batch: it is empty now.
        """

    def picture(self, view: ImageView) -> Image:
        """As `RunningBatch.picture`."""

    def close(self) -> None:
        """Nothing is asked of it any more."""


class LocalModel:
    """A model in this process."""

    def __init__(self, pipeline: OneFlowPipeline) -> None:
        self.pipeline = pipeline
        self.facts = Facts(dict(pipeline.identity), pipeline.parts.image_size)
        self._empty()

    def _empty(self) -> None:
        from oneflow_core.running import RunningBatch

        self._batch = RunningBatch(self.pipeline)
        self._watched: set[int] = set()

    def prepare(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: Sequence[Options]
    ) -> list[Prepared]:
        """As `RunningBatch.prepare`."""
        return self._batch.prepare(prompts, seeds, options)

    def turn(self, leaving: Sequence[int], joining: Sequence[Joining], meanwhile: Callable[[], None]) -> Turn:
        """As `Model.turn`; `meanwhile` comes first."""
        meanwhile()
        try:
            return self._turn(leaving, joining)
        except Exception:
            # What broke may have left it in pieces.
            self._empty()
            raise

    def _turn(self, leaving: Sequence[int], joining: Sequence[Joining]) -> Turn:
        batch = self._batch
        batch.leave(leaving)
        keys = batch.join([j.prepared for j in joining])
        self._watched.difference_update(leaving)
        self._watched.update(key for key, j in zip(keys, joining, strict=True) if j.watched)
        size, done = len(batch), dict(batch.step())
        seen = {key: batch.look(key) for key in self._watched if not isinstance(done.get(key), Exception)}
        self._watched.difference_update(done)
        return Turn(keys, size, done, seen)

    def picture(self, view: ImageView) -> Image:
        """As `RunningBatch.picture`."""
        return self._batch.picture(view)

    def close(self) -> None:
        """Leaves everything to the garbage collector."""
