"""The training stream: packs, the same for any number of workers, resumed exactly from a few integers.

Worker w of W reads lanes w, w+W, ...; a global step takes `packs_per_lane` packs from every lane. Within a lane
samples come in the order of `LaneOrder`, corpora are blended by `Blend`, a sample is corrupted with a generator of
(seed, epoch, doc_id), and `Packer` fills packs of them. So every pack is a function of (manifests, config, lane,
what the lane handed out before), and what was handed out, never what was read ahead, is the state.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from oneflow_core.data.cache import default_cache
from oneflow_core.data.elsewhere import read_elsewhere
from oneflow_core.data.lanes import Blend, LaneError, LaneOrder, generator
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.packer import LanePosition, Packer, RefusedSample, Sized
from oneflow_core.data.read_ahead import read_ahead
from oneflow_core.data.shard import Sample
from oneflow_core.data.source import Source
from oneflow_core.data.state import STATE_SCHEMA, positions_of, state_of

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
    """How the stream is cut; all but `read_ahead`, `process` and `cache*` change what a run reads."""

    tokens: int
    """Tokens of one pack, text and image together."""
    lanes: int
    """Independent streams; the number of workers must divide it."""
    packs_per_lane: int = 1
    """Packs that every lane gives to a global step."""
    seed: int = 0
    window: int = 8192
    """Samples of a lane that are shuffled together."""
    look_ahead: int = 8
    """Documents among which the last ones of a pack are chosen; 1 keeps the reading order."""
    holdout: float = 0.0
    """Fraction of documents, chosen by a digest of their key, that training never reads."""
    part: Literal["train", "heldout"] = "train"
    """Which side of the holdout is read."""
    read_ahead: int = 2
    """Steps prepared before they are asked for; 0 prepares on the calling thread."""
    process: bool = False
    """Prepares ahead in a process rather than in a thread; then `prepare` and `collate` must pickle."""
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


@dataclass(slots=True)
class _Step(Generic[P]):
    """A worker's part of a global step, and where its lanes stand after it."""

    packs: list[P]
    positions: dict[int, LanePosition]
    documents: int
    tokens: int
    refused: Counter[str]


class Loader(Generic[E, P]):
    """Steps of packs for worker `rank` of `world_size`; endless.

    Args:
        corpora: manifests with weights; names must differ.
        prepare: makes an example of a sample with the generator given; must depend on nothing else.
        prepare_at: what takes the place of `prepare` at a global step, from 0; None: always `prepare`. It is asked for
            steps up to `read_ahead` + 1 after the one handed out last, perhaps in another thread (never in another
            process).
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
        twin: dict[str, Any] = {
            "rank": rank,
            "world_size": world_size,
            "prepare": prepare,
            "collate": collate,
        }
        self._twin: Callable[[], Loader[E, P]] = partial(
            Loader, corpora, replace(config, read_ahead=0), **twin
        )
        self._step = 0
        self._lanes = range(rank, config.lanes, world_size)
        self._sources = {c.manifest.name: _source(c.manifest, config) for c in corpora}
        if len(self._sources) != len(corpora):
            raise LaneError("two corpora have the same name; list a corpus once, with its weight")
        weights = {c.manifest.name: c.weight or float(c.manifest.totals.samples) for c in corpora}
        seed = f"{config.seed}"
        self._blends = {lane: Blend(weights, seed=seed, lane=lane) for lane in self._lanes}
        start = LanePosition(dict.fromkeys(self._sources, 0))
        self._positions = dict.fromkeys(self._lanes, start)

    def __iter__(self) -> Iterator[list[P]]:
        """This worker's packs of each global step, lane by lane, going on from the state."""
        ahead = self.config.read_ahead
        if ahead and self.config.process:
            make = partial(_steps_elsewhere, self._twin, self._step, self._positions)
            steps = read_elsewhere(make, _Changes(self._prepare_at, self._step), ahead)
        else:
            steps = self._steps(self._prepare_at)
            steps = read_ahead(steps, ahead) if ahead else steps
        while True:
            begun = time.perf_counter()
            step = next(steps)
            self.stats.wait_s += time.perf_counter() - begun
            self._account(step)
            yield step.packs

    def state_dict(self) -> dict[str, Any]:
        """Where this worker's lanes stand; join those of all workers with `oneflow_core.data.state.join_states`."""
        lanes = state_of(self._positions, list(self._sources), self._lanes.start, self._lanes.step)
        return {"schema": STATE_SCHEMA, **self._identity(), "step": self._step, **lanes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state`, which must hold this worker's lanes (it may hold all); iterate anew afterwards.

        Raises:
            LaneError: the state is of other corpora, another seed or another cut into lanes, or damaged.
        """
        positions = positions_of(state)
        for key, ours in self._identity().items():
            if state.get(key) != ours:
                found = f"the state has {key} {state.get(key)!r}, the run asks for {ours!r}"
                raise LaneError(f"{found}; resume with the config that wrote it, or begin anew")
        if missing := set(self._lanes) - positions.keys():
            raise LaneError(f"the state lacks lane {min(missing)}; join the states of all workers first")
        self._step = int(state.get("step", 0))
        self._positions = {lane: positions[lane] for lane in self._lanes}

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far, on this worker's lanes."""
        return {
            name: sum(position.consumed[name] for position in self._positions.values())
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
            "corpora": versions,
            "lane_count": self.config.lanes,
            "seed": self.config.seed,
        }

    def _account(self, step: _Step[P]) -> None:
        self._positions = step.positions
        self._step += 1
        self.stats.steps += 1
        self.stats.packs += len(step.packs)
        self.stats.documents += step.documents
        self.stats.tokens += step.tokens
        self.stats.refused.update(step.refused)

    def _steps(self, prepare_at: Callable[[int], Prepare[E]]) -> Iterator[_Step[P]]:
        positions, number = dict(self._positions), self._step
        packers: dict[int, Iterator[tuple[list[E], LanePosition, Counter[str]]]] = {}
        prepare: Prepare[E] | None = None
        while True:
            # Another way to prepare begins as a resumed run does: what was looked at is prepared again.
            if (now := prepare_at(number)) != prepare:
                prepare = now
                packers = {lane: iter(self._packer(lane, positions[lane], now)) for lane in self._lanes}
            number += 1
            step = _Step[P]([], {}, 0, 0, Counter())
            for lane, packer in packers.items():
                for _ in range(self.config.packs_per_lane):
                    examples, positions[lane], refused = next(packer)
                    step.packs.append(self._collate(examples))
                    step.documents += len(examples)
                    step.tokens += sum(example.length for example in examples)
                    step.refused.update(refused)
            step.positions = dict(positions)
            yield step

    def _packer(self, lane: int, position: LanePosition, prepare: Prepare[E]) -> Packer[E]:
        """The packs of a lane from `position`; it is patient until it has seen every corpus whole."""
        sizes = {name: source.order.size(lane) for name, source in self._sources.items()}
        return Packer(
            position,
            self._blends[lane],
            lambda name, consumed: self._example(name, lane, consumed, prepare),
            tokens=self.config.tokens,
            look_ahead=self.config.look_ahead,
            patience=self._blends[lane].draws_until(sizes),
        )

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


class _Changes(Generic[E]):
    """What a process is told for its n-th step: how to prepare it, where that is another way than before."""

    def __init__(self, prepare_at: Callable[[int], Prepare[E]], first: int) -> None:
        self._prepare_at, self._first = prepare_at, first
        self._last: Prepare[E] | None = None

    def __call__(self, number: int) -> Prepare[E] | None:
        now = self._prepare_at(self._first + number)
        if now == self._last:
            return None
        self._last = now
        return now


def _steps_elsewhere(
    twin: Callable[[], Loader[E, P]],
    step: int,
    positions: dict[int, LanePosition],
    changes: Iterator[Prepare[E] | None],
) -> Iterator[_Step[P]]:
    """In the process: the steps of a loader like the caller's, from `step`; one for each of `changes`."""
    loader = twin()
    loader._step, loader._positions = step, positions
    now: Prepare[E] | None = None

    def prepare_at(_: int) -> Prepare[E]:
        nonlocal now
        now = next(changes) or now
        assert now is not None
        return now

    return loader._steps(prepare_at)


def _source(manifest: Manifest, config: LoaderConfig) -> Source:
    order = LaneOrder(
        manifest.shards.column("samples"),
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
