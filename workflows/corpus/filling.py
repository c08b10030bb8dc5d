"""Filling: the images of chunks, read again from their source, decoded and brought to size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from workflows.corpus.chunks import Chunk, Job
from workflows.corpus.config import CorpusConfig
from workflows.corpus.documents import sha256_of
from workflows.corpus.frames import Frame, Size
from workflows.corpus.pictures import PictureError, framed
from workflows.corpus.refusals import REASONS, RefusedImage
from workflows.corpus.sources import Draft, Picture, Refused
from workflows.corpus.sources.protocol import head
from workflows.corpus.units import Unit, opened
from workflows.errors import OneFlowError


@dataclass(eq=False)
class Filled:
    """A chunk and its pixels [images, height, width, 3]; what is refused stays black, so that no batch changes."""

    chunk: Chunk
    pixels: NDArray[np.uint8] = field(init=False)
    refused: list[RefusedImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        width, height = self.chunk.size
        self.pixels = np.zeros((len(self.chunk), height, width, 3), np.uint8)

    def put(self, place: int, picture: Picture, frame: Frame) -> None:
        """The image of that place, which is refused where it does not decode, or to other sides than planned."""
        data = picture.data or b""
        try:
            self.pixels[place] = framed(data, self.chunk.size, partial(_meant, frame, self.chunk.size))
        except PictureError as error:
            reason = str(error) if str(error) in REASONS else REASONS[0]
            self.refused.append(RefusedImage(place, reason, picture.name, head(data)))


def filled(config: CorpusConfig, job: Job) -> Iterator[Filled]:
    """Each chunk of the job, as soon as the last of its images was read; what is no longer there is refused.

    Raises:
        OneFlowError: images are missing because the unit changed since it was ingested.
    """
    frame = Frame.of(config.encode)
    places = {sha256: (c, i) for c, chunk in enumerate(job.chunks) for i, sha256 in enumerate(chunk.images)}
    left = [len(chunk) for chunk in job.chunks]
    held: dict[int, Filled] = {}
    with opened(config, job.unit) as drafts:
        for sha256, picture in _pictures(drafts):
            found = places.pop(sha256, None)
            if found is None:
                continue
            number, place = found
            if number not in held:
                held[number] = Filled(job.chunks[number])
            held[number].put(place, picture, frame)
            left[number] -= 1
            if not left[number]:
                yield _sorted(held.pop(number))
            if not places:
                return
        if drafts.sha256() != job.sha256:
            raise _changed(job.unit, len(places))
    for number, place in places.values():
        if number not in held:
            held[number] = Filled(job.chunks[number])
        held[number].refused.append(RefusedImage(place, "image changed"))
    yield from (_sorted(held[number]) for number in sorted(held))


def _sorted(chunk: Filled) -> Filled:
    chunk.refused.sort(key=lambda refused: refused.place)
    return chunk


def _meant(frame: Frame, size: Size, width: int, height: int) -> bool:
    return frame.sizes[frame.nearest(width, height)] == size


def _pictures(drafts: Iterable[Draft | Refused]) -> Iterator[tuple[str, Picture]]:
    for draft in drafts:
        for content, _ in draft.segments if isinstance(draft, Draft) else ():
            if isinstance(content, Picture) and content.data is not None:
                yield sha256_of(content), content


def _changed(unit: Unit, count: int) -> OneFlowError:
    cause = f"changed since it was ingested ({count} of its images are gone)"
    return OneFlowError(unit.main, cause, "build the corpus again")
