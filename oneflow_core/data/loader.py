"""The training stream: packs, the same for any number of workers, resumed exactly from a few integers.

Worker w of W reads lanes w, w+W, ...; a global step takes `packs_per_lane` packs from every lane. Within a lane
samples come in the order of `LaneOrder`, corpora are blended by `Blend`, a sample is corrupted with a generator of
(seed, epoch, doc_id), and packs are filled in that order. So every pack is a function of (manifests, config,
lane, what the lane consumed before), and what was consumed, never what was read ahead, is the state.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from oneflow_core.data.lanes import Blend, LaneError, LaneOrder, generator
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.read_ahead import read_ahead
from oneflow_core.data.shard import Sample
from oneflow_core.data.source import Source
from oneflow_core.data.store import default_cache

STATE_SCHEMA = 1


class Sized(Protocol):
    """What `prepare` makes of a sample."""

    @property
    def length(self) -> int:
        """Tokens that it takes in a pack."""


E = TypeVar("E", bound=Sized)
P = TypeVar("P")
Prepare = Callable[[Sample, np.random.Generator], E]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One corpus of the blend. `weight` is its share of the documents; None: in proportion to its size."""

    manifest: Manifest
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """How the stream is cut; all but `read_ahead` and `cache*` change what a run reads."""

    tokens: int
    """Tokens of one pack, text and image together."""
    lanes: int
    """Independent streams; the number of workers must divide it."""
    packs_per_lane: int = 1
    """Packs that every lane gives to a global step."""
    seed: int = 0
    window: int = 8192
    """Samples of a lane that are shuffled together."""
    holdout: float = 0.0
    """Fraction of documents, chosen by a digest of their key, that training never reads."""
    part: Literal["train", "heldout"] = "train"
    """Which side of the holdout is read."""
    read_ahead: int = 2
    """Steps prepared before they are asked for; 0 prepares on the calling thread."""
    cache: Path = field(default_factory=default_cache)
    """Where remote shards are kept."""
    cache_bytes: int = 32 << 30


@dataclass(slots=True)
class LoaderStats:
    """Sums over what was handed out since the loader was made."""

    steps: int = 0
    packs: int = 0
    documents: int = 0
    tokens: int = 0
    """Tokens in packs; `tokens / (packs * config.tokens)` is the packing efficiency."""
    wait_s: float = 0.0
    """Seconds that the caller waited for data."""
    refused: Counter[str] = field(default_factory=Counter)
    """Documents left out, by reason: consumed, but in no pack."""


class RefusedSample(ValueError):
    """`prepare` raises it for a sample that cannot be trained on; `reason` is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Step(Generic[P]):
    """A worker's part of a global step, and where its lanes stand after it."""

    packs: list[P]
    consumed: dict[int, dict[str, int]]
    documents: int
    tokens: int
    refused: Counter[str]


class Loader(Generic[E, P]):
    """Steps of packs for worker `rank` of `world_size`; endless.

    Args:
        corpora: manifests with weights; names must differ.
        prepare: makes an example of a sample with the generator given; must depend on nothing else.
        prepare_at: what takes the place of `prepare` at a global step, from 0; None: always `prepare`. It is asked for
            steps up to `read_ahead` + 1 after the one handed out last, perhaps in another thread.
        collate: makes a pack of examples; their lengths sum to at most `config.tokens`.

    Raises:
        LaneError: `world_size` does not divide the lanes, or a corpus is too small for them.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        config: LoaderConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        prepare: Prepare[E],
        prepare_at: Callable[[int], Prepare[E]] | None = None,
        collate: Callable[[list[E]], P],
    ) -> None:
        if config.lanes % world_size:
            raise LaneError(f"{world_size} workers do not divide {config.lanes} lanes; change one of them")
        self.config, self.stats = config, LoaderStats()
        self._prepare_at, self._collate = prepare_at or (lambda _: prepare), collate
        self._step = 0
        self._lanes = range(rank, config.lanes, world_size)
        self._sources = {c.manifest.name: _source(c.manifest, config) for c in corpora}
        if len(self._sources) != len(corpora):
            raise LaneError("two corpora have the same name; list a corpus once, with its weight")
        weights = {c.manifest.name: c.weight or float(c.manifest.totals.samples) for c in corpora}
        seed = f"{config.seed}"
        self._blends = {lane: Blend(weights, seed=seed, lane=lane) for lane in self._lanes}
        self._consumed = {lane: dict.fromkeys(self._sources, 0) for lane in self._lanes}

    def __iter__(self) -> Iterator[list[P]]:
        """This worker's packs of each global step, lane by lane, going on from the state."""
        steps = self._steps()
        if self.config.read_ahead:
            steps = read_ahead(steps, self.config.read_ahead)
        while True:
            begun = time.perf_counter()
            step = next(steps)
            self.stats.wait_s += time.perf_counter() - begun
            self._account(step)
            yield step.packs

    def state_dict(self) -> dict[str, Any]:
        """What this worker's lanes consumed; join those of all workers with `join_states`."""
        lanes = {str(lane): dict(counts) for lane, counts in self._consumed.items()}
        return {**self._identity(), "step": self._step, "lanes": lanes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state`, which must hold this worker's lanes (it may hold all); iterate anew afterwards.

        Raises:
            LaneError: the state is of other corpora, another seed or another cut into lanes.
        """
        for key, ours in self._identity().items():
            if state.get(key) != ours:
                found = f"the state has {key} {state.get(key)!r}, the run asks for {ours!r}"
                raise LaneError(f"{found}; resume with the config that wrote it, or begin anew")
        self._step = int(state.get("step", 0))
        lanes = state["lanes"]
        self._consumed = {lane: {k: int(v) for k, v in lanes[str(lane)].items()} for lane in self._lanes}

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far, on this worker's lanes."""
        return {
            name: sum(counts[name] for counts in self._consumed.values())
            / sum(source.order.size(lane) for lane in self._lanes)
            for name, source in self._sources.items()
        }

    def close(self) -> None:
        """Let go of the shards."""
        for source in self._sources.values():
            source.close()

    def _identity(self) -> dict[str, Any]:
        versions = {name: source.manifest.version for name, source in self._sources.items()}
        return {
            "schema": STATE_SCHEMA,
            "corpora": versions,
            "lane_count": self.config.lanes,
            "seed": self.config.seed,
        }

    def _account(self, step: _Step[P]) -> None:
        self._consumed = step.consumed
        self._step += 1
        self.stats.steps += 1
        self.stats.packs += len(step.packs)
        self.stats.documents += step.documents
        self.stats.tokens += step.tokens
        self.stats.refused.update(step.refused)

    def _steps(self) -> Iterator[_Step[P]]:
        readers = {lane: self._lane(lane) for lane in self._lanes}
        counts = {lane: dict(consumed) for lane, consumed in self._consumed.items()}
        while True:
            step = _Step[P]([], {}, 0, 0, Counter())
            for lane, reader in readers.items():
                for _ in range(self.config.packs_per_lane):
                    examples, counts[lane], refused = next(reader)
                    step.packs.append(self._collate(examples))
                    step.documents += len(examples)
                    step.tokens += sum(example.length for example in examples)
                    step.refused.update(refused)
            step.consumed = dict(counts)
            yield step

    def _lane(self, lane: int) -> Iterator[tuple[list[E], dict[str, int], Counter[str]]]:
        """Examples of one pack after another, with the lane's counts after each and what was refused in it."""
        counts, held, room = dict(self._consumed[lane]), list[E](), self.config.tokens
        after, refused, idle = dict(counts), Counter[str](), 0
        packs, first = 0, self._step
        prepare = self._prepare_at(first)
        while idle <= self._longest_wait(lane):
            name = self._blends[lane].choose(counts)
            try:
                example = self._example(name, lane, counts[name], prepare)
            except RefusedSample as error:
                refused[error.reason] += 1
                example = None
            if example is not None and example.length > room:
                yield held, after, refused
                held, room, refused = [], self.config.tokens, Counter()
                packs += 1
                before, prepare = prepare, self._prepare_at(first + packs // self.config.packs_per_lane)
                if prepare != before:
                    continue
            counts[name] += 1
            idle += 1
            if example is not None:
                idle = 0
                held.append(example)
                room -= example.length
            after = dict(counts)
        found = f"lane {lane} read {idle} documents and could use none (refused: {dict(refused)})"
        raise LaneError(f"{found}; lower data.lanes, or change data.holdout or data.tokens")

    def _longest_wait(self, lane: int) -> int:
        """Documents after which a lane has seen every corpus whole, whatever the weights."""
        sizes = {name: source.order.size(lane) for name, source in self._sources.items()}
        return self._blends[lane].draws_until(sizes)

    def _example(self, name: str, lane: int, consumed: int, prepare: Prepare[E]) -> E | None:
        """The example at a place of a lane; None when it is on the other side of the holdout."""
        found = self._sources[name].sample(lane, consumed)
        if found is None:
            return None
        sample, epoch = found
        doc_id = sample.document.doc_id
        example = prepare(sample, generator(self.config.seed, "sample", epoch, doc_id))
        if example.length > self.config.tokens:
            raise RefusedSample("longer than a pack")
        return example


def join_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of all lanes from those of all workers."""
    lanes = {lane: counts for state in states for lane, counts in state["lanes"].items()}
    return {**states[0], "lanes": dict(sorted(lanes.items(), key=lambda item: int(item[0])))}


def _source(manifest: Manifest, config: LoaderConfig) -> Source:
    order = LaneOrder(
        [shard.samples for shard in manifest.shards],
        lanes=config.lanes,
        seed=f"{config.seed}/{manifest.name}",
        window=config.window,
    )
    return Source(
        manifest,
        order,
        holdout=config.holdout,
        held_out=config.part == "heldout",
        cache=config.cache,
        cache_bytes=config.cache_bytes,
    )
