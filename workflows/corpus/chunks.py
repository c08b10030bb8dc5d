"""Chunks: what is to be encoded, cut into what is encoded and stored at once.

What is in a chunk depends on the parts of documents, on what is stored and on the config alone, never on who computes
it: a job that was killed and runs again plans what is left just as before.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workflows.corpus.config import CorpusConfig
from workflows.corpus.digests import SHA256, Digests, distinct, find, of_column, to_hex
from workflows.corpus.encode_config import EncodeConfig
from workflows.corpus.encoded import Store
from workflows.corpus.frames import PIXEL_BYTES, Frame, Size
from workflows.corpus.ingest import UnitReport
from workflows.corpus.parts import read_part
from workflows.corpus.refusals import Refusals
from workflows.corpus.selection import Selection
from workflows.corpus.units import Unit


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images that are encoded together and stored as one part of each kind in `wants`."""

    wants: tuple[str, ...]
    size: Size
    """What they are brought to."""
    digests: bytes
    """SHA-256 of each, 32 bytes."""

    @property
    def images(self) -> list[str]:
        """Their SHA-256."""
        return to_hex(np.frombuffer(self.digests, SHA256))

    @property
    def name(self) -> str:
        """Of the parts."""
        return f"part-{hashlib.sha256(self.digests.hex().encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.digests) // SHA256.itemsize


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be encoded; how many distinct images there are, and how many of them need nothing more."""

    jobs: tuple["Job", ...]
    images: int
    stored: int

    @property
    def wanted(self) -> int:
        """Images to be encoded."""
        return sum(len(chunk) for job in self.jobs for chunk in job.chunks)


@dataclass(frozen=True, slots=True)
class Job:
    """The chunks that are filled from one unit, whose files had the digest `sha256` when it was ingested."""

    unit: Unit
    sha256: str
    chunks: tuple[Chunk, ...]


def images_of(unit: UnitReport, taken: NDArray[np.bool_]) -> Digests:
    """Images of those documents of a unit that are taken, each once, in their order."""
    column = read_part(unit.url, ["images"])["images"].filter(pa.array(taken))
    return distinct(of_column(column.combine_chunks().flatten()))


def plan(
    config: CorpusConfig,
    units: Sequence[UnitReport],
    selection: Selection,
    stores: Sequence[Store],
    refusals: Refusals,
) -> Planned:
    """What is to be encoded, each image in the first unit that has it. What was refused is not tried again."""
    held = [images_of(unit, selection.taken(number)) for number, unit in enumerate(units)]
    firsts, count = _firsts(held)
    jobs: list[Job] = []
    stored = 0
    for number, (unit, images, first) in enumerate(zip(units, held, firsts, strict=True)):
        own = images[first]
        stored += int(np.logical_and.reduce([s.has(own) for s in stores if s.model is not None]).sum())
        chunks = tuple(_chunks(config.encode, unit, selection.taken(number), own, stores, refusals))
        if chunks:
            jobs.append(Job(unit.unit, unit.sha256, chunks))
    return Planned(tuple(jobs), count, stored)


def _firsts(held: Sequence[Digests]) -> tuple[list[NDArray[np.bool_]], int]:
    """Which images of each unit are in no earlier one; and how many there are in all."""
    everything = np.concatenate([np.empty(0, SHA256), *held])
    _, first = np.unique(everything, return_index=True)
    mask = np.zeros(len(everything), np.bool_)
    mask[first] = True
    return np.split(mask, np.cumsum([len(images) for images in held])[:-1]), len(first)


def _chunks(
    config: EncodeConfig,
    unit: UnitReport,
    taken: NDArray[np.bool_],
    images: Digests,
    stores: Sequence[Store],
    refusals: Refusals,
) -> Iterator[Chunk]:
    lacks = [_lacks(store, images, refusals) for store in stores]
    some = np.logical_or.reduce(lacks)
    if not some.any():
        return
    frame = Frame.of(config)
    numbers = _numbers(frame, unit, taken, images)
    groups: dict[tuple[int, ...], list[int]] = {}
    for place in np.flatnonzero(some).tolist():
        key = (int(numbers[place]), *(int(lack[place]) for lack in lacks))
        groups.setdefault(key, []).append(place)
    for (number, *wanted), places in groups.items():
        wants = tuple(store.kind for store, want in zip(stores, wanted, strict=True) if want)
        length = part_images(config, frame.sizes[number])
        for start in range(0, len(places), length):
            yield Chunk(wants, frame.sizes[number], images[places[start : start + length]].tobytes())


def part_images(config: EncodeConfig, size: Size) -> int:
    """Most images of this size in one part."""
    return max(1, min(config.part_images, int(config.part_mb * 1e6) // (size[0] * size[1] * PIXEL_BYTES)))


def _lacks(store: Store, images: Digests, refusals: Refusals) -> NDArray[np.bool_]:
    """Which images are to be tried: not stored, nor known to be refused."""
    if store.model is None:
        return np.zeros(len(images), np.bool_)
    tried = (find(images, store.refused) >= 0) & (find(images, refusals.images) >= 0)
    return ~(store.has(images) | tried)


def _numbers(frame: Frame, unit: UnitReport, taken: NDArray[np.bool_], images: Digests) -> NDArray[np.int64]:
    """Number of the size in `frame` that each image is brought to, by the sides that its document tells."""
    if len(frame.sizes) == 1:
        return np.zeros(len(images), np.int64)
    sides: dict[str, tuple[int, int]] = {}
    for text in read_part(unit.url, ["document"])["document"].filter(pa.array(taken)).to_pylist():
        for segment in json.loads(text)["segments"]:
            if "sha256" in segment:
                sides.setdefault(segment["sha256"], (segment["width"], segment["height"]))
    return np.array([frame.nearest(*sides[sha256]) for sha256 in to_hex(images)], np.int64)
