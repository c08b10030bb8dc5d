"""The loader on real shards: the same batches for any workers, exact resume, every document once an epoch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oneflow_core.data.index import ShardError
from oneflow_core.data.lanes import LaneError
from oneflow_core.data.loader import Corpus, Loader, LoaderConfig, RefusedSample
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from oneflow_core.data.source import is_held_out
from oneflow_core.data.state import join_states, positions_of
from tests.core.data.written import write_corpus

TOKENS = 40


@dataclass(frozen=True)
class Example:
    doc_id: str
    draw: float
    length: int


Pack = tuple[tuple[str, float], ...]


def prepare(sample: Sample, rng: np.random.Generator) -> Example:
    [text] = sample.document.texts
    if text.text == "broken":
        raise RefusedSample("broken")
    return Example(sample.document.doc_id, float(rng.random()), len(text.text))


def collate(examples: list[Example]) -> Pack:
    assert 0 < sum(example.length for example in examples) <= TOKENS
    return tuple((example.doc_id, example.draw) for example in examples)


def loader(
    corpora: Sequence[Manifest | Corpus], config: LoaderConfig, rank: int = 0, world: int = 1
) -> Loader[Example, Pack]:
    given = [c if isinstance(c, Corpus) else Corpus(c) for c in corpora]
    return Loader(given, config, rank=rank, world_size=world, prepare=prepare, collate=collate)


def global_steps(
    corpora: Sequence[Manifest], config: LoaderConfig, world: int, steps: int
) -> list[list[Pack]]:
    """Per step, the packs of all workers in a fixed order."""
    parts = [list(islice(loader(corpora, config, rank, world), steps)) for rank in range(world)]
    return [sorted(pack for part in parts for pack in part[step]) for step in range(steps)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus"), "shapes", [30, 0, 25, 1, 40])


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus"), "stories", [23, 22], lengths=(11, 5))


GOLDEN_PACKS = "6178df570127b227"
CONFIG = LoaderConfig(tokens=TOKENS, lanes=4, packs_per_lane=2, seed=7, window=16)


def test_global_batches_are_the_same_for_any_number_of_workers(shapes: Manifest, stories: Manifest) -> None:
    one = global_steps([shapes, stories], CONFIG, 1, 12)
    assert all(len(packs) == 8 for packs in one)
    assert one == global_steps([shapes, stories], CONFIG, 2, 12)
    assert one == global_steps([shapes, stories], CONFIG, 4, 12)


@pytest.mark.parametrize("look_ahead", [1, 8])
def test_every_document_is_read_once_an_epoch(shapes: Manifest, look_ahead: int) -> None:
    config = replace(CONFIG, lanes=3, packs_per_lane=1, look_ahead=look_ahead)
    read, held = Counter[str](), loader([shapes], config)
    for packs in islice(held, 40):
        read.update(doc_id for pack in packs for doc_id, _ in pack)
        positions = positions_of(held.state_dict()).values()
        consumed = [position.consumed["shapes"] for position in positions]
        reach = [n + max(p.ahead, default=0) for n, p in zip(consumed, positions, strict=True)]
        assert min(consumed) // 32 <= min(read.values()) or len(read) < 96
        assert max(read.values()) <= -(-(max(reach) + 1) // 32)
        assert len(read) == 96 or min(consumed) < 32
        assert read.total() == sum(consumed) + sum(len(position.ahead) for position in positions)
    assert held.epochs()["shapes"] == pytest.approx(sum(consumed) / 96)


def test_the_epochs_differ_in_order_and_corruption(shapes: Manifest) -> None:
    config = replace(CONFIG, lanes=1, packs_per_lane=1, look_ahead=1)
    flat = [entry for packs in islice(loader([shapes], config), 100) for pack in packs for entry in pack]
    first, second = flat[:96], flat[96:192]
    assert sorted(d for d, _ in first) == sorted(d for d, _ in second)
    assert [d for d, _ in first] != [d for d, _ in second]
    assert not set(dict(first).values()) & set(dict(second).values())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 14), world=st.sampled_from([1, 2, 4]), ahead=st.integers(0, 3))
def test_resume_at_any_step_with_any_workers_equals_the_undisturbed_run(
    shapes: Manifest, stories: Manifest, stop: int, world: int, ahead: int
) -> None:
    config = replace(CONFIG, read_ahead=ahead)
    corpora = [shapes, stories]
    undisturbed = global_steps(corpora, config, 1, 15)
    first = [loader(corpora, config, rank, 2) for rank in range(2)]
    for part in first:
        assert len(list(islice(part, stop))) == stop
    state = join_states([part.state_dict() for part in first])

    second = [loader(corpora, config, rank, world) for rank in range(world)]
    for part in second:
        part.load_state_dict(state)
    parts = [list(islice(part, 15 - stop)) for part in second]
    resumed = [sorted(p for part in parts for p in part[step]) for step in range(15 - stop)]
    assert resumed == undisturbed[stop:]


def test_the_order_of_a_seed_is_golden(shapes: Manifest, stories: Manifest) -> None:
    """Who changes it changes what every run reads: say SAMPLE ORDER in the commit, and raise STATE_SCHEMA."""
    packs = [pack for step in islice(loader([shapes, stories], CONFIG), 4) for pack in step]
    ids = [[doc_id for doc_id, _ in pack] for pack in packs]
    assert hashlib.sha256(repr(ids).encode()).hexdigest()[:16] == GOLDEN_PACKS, ids


def test_weights_hold_whatever_the_sizes(shapes: Manifest, stories: Manifest) -> None:
    held = loader([Corpus(shapes, 1.0), Corpus(stories, 3.0)], replace(CONFIG, lanes=1))
    names = Counter(d.split("-")[0] for ps in islice(held, 20) for pack in ps for d, _ in pack)
    assert names["stories"] / sum(names.values()) == pytest.approx(0.75, abs=0.01)


def test_refused_and_long_documents_are_counted_and_left_out(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, "odd", [40], lengths=(5, 0, TOKENS + 1, TOKENS))
    held = loader([manifest], replace(CONFIG, lanes=1, packs_per_lane=1))
    read = [d for ps in islice(held, 60) for pack in ps for d, _ in pack]
    assert {int(d.split("-")[1]) % 4 for d in read} == {0, 3}
    position = positions_of(held.state_dict())[0]
    passed = position.consumed["odd"] + len(position.ahead)
    assert held.stats.documents == len(read)
    assert sum(held.stats.refused.values()) + len(read) == passed
    assert held.stats.refused.keys() == {"broken", "longer than a pack"}
    assert held.stats.tokens == sum(5 if int(d.split("-")[1]) % 4 == 0 else TOKENS for d in read)


def test_a_corpus_of_which_nothing_can_be_used_is_an_error_not_a_hang(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, "bad", [10], lengths=(0,))
    with pytest.raises(LaneError, match=r"could use none \(refused: {'broken'"):
        next(iter(loader([manifest], replace(CONFIG, lanes=2))))


def test_the_holdout_splits_the_documents_in_two(shapes: Manifest) -> None:
    read = {}
    for part in ("train", "heldout"):
        config = replace(CONFIG, lanes=1, holdout=0.3, part=part)
        read[part] = {d for ps in islice(loader([shapes], config), 60) for pack in ps for d, _ in pack}
    assert read["train"] | read["heldout"] == {f"shapes-{i}" for i in range(96)}
    assert read["heldout"] == {f"shapes-{i}" for i in range(96) if is_held_out(f"shapes-{i}", 0.3)}
    assert not read["train"] & read["heldout"]
    assert 10 < len(read["heldout"]) < 50


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 8}, "the state has seed 7"), ({"lanes": 2}, "the state has lane_count 4")],
)
def test_a_state_of_another_cut_is_refused(shapes: Manifest, change: dict[str, int], message: str) -> None:
    state = loader([shapes], CONFIG).state_dict()
    with pytest.raises(LaneError, match=message):
        loader([shapes], replace(CONFIG, **change)).load_state_dict(state)


def test_workers_that_do_not_divide_the_lanes_are_refused(shapes: Manifest) -> None:
    with pytest.raises(LaneError, match="3 workers do not divide 4 lanes"):
        loader([shapes], CONFIG, 0, 3)


def test_a_damaged_shard_stops_the_stream_with_its_name(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, "torn", [20])
    path = tmp_path / "torn" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match="bytes differ from their digest"):
        list(islice(loader([manifest], replace(CONFIG, lanes=1)), 20))


def test_an_index_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, "swapped", [20])
    write_corpus(tmp_path, "other", [20])
    (tmp_path / "other/shard-000000.index.arrow").replace(tmp_path / "swapped/shard-000000.index.arrow")
    with pytest.raises(ShardError, match="not the index that the manifest describes"):
        next(iter(loader([manifest], replace(CONFIG, lanes=1))))


def test_remote_shards_are_fetched_once_checked_and_kept_within_bounds(tmp_path: Path) -> None:
    import fsspec

    manifest = write_corpus(tmp_path, "remote", [20, 20, 20])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "remote"), "/remote", recursive=True)
    remote = replace(manifest, base="memory://remote")
    bound = 2 * manifest.shards[0].bytes + 1
    config = replace(CONFIG, lanes=1, cache=tmp_path / "cache", cache_bytes=bound, window=4)
    assert list(islice(loader([remote], config), 30)) == list(islice(loader([manifest], config), 30))
    held = list((tmp_path / "cache").glob("*.tar"))
    assert 0 < len(held) <= 2 and not list((tmp_path / "cache").glob(".fetch-*"))
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in held)

    memory.pipe("/remote/shard-000001.tar", bytes(manifest.shards[1].bytes))
    with pytest.raises(
        ShardError, match=r"shard-000001\.tar.*: remote-\d+\.json: bytes differ.*corpus verify"
    ):
        list(islice(loader([remote], replace(config, cache=tmp_path / "fresh")), 30))


def stamped(step: int) -> Callable[[Sample, np.random.Generator], Example]:
    """Prepares what is one and the same within blocks of three steps, lengths included."""
    return BLOCKS[step // 3]


def _of_block(block: int) -> Callable[[Sample, np.random.Generator], Example]:
    def make(sample: Sample, rng: np.random.Generator) -> Example:
        made = prepare(sample, rng)
        return Example(f"{block}:{made.doc_id}", made.draw, max(1, made.length - block))

    return make


BLOCKS = [_of_block(block) for block in range(8)]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 14), world=st.sampled_from([1, 2, 4]), ahead=st.integers(0, 3))
def test_every_example_is_prepared_for_the_step_it_is_in(
    shapes: Manifest, stories: Manifest, stop: int, world: int, ahead: int
) -> None:
    """Also one that did not fit the pack before; and a resumed run prepares as the undisturbed one."""

    def parts(workers: int, config: LoaderConfig) -> list[Loader[Example, Pack]]:
        shared = {"world_size": workers, "prepare": prepare, "prepare_at": stamped, "collate": collate}
        return [Loader([Corpus(shapes), Corpus(stories)], config, rank=r, **shared) for r in range(workers)]  # type: ignore[arg-type]

    def steps(held: list[Loader[Example, Pack]], count: int) -> list[list[Pack]]:
        read = [list(islice(part, count)) for part in held]
        return [sorted(p for part in read for p in part[step]) for step in range(count)]

    undisturbed = steps(parts(1, CONFIG), 15)
    for number, packs in enumerate(undisturbed):
        assert {doc_id.split(":")[0] for pack in packs for doc_id, _ in pack} == {str(number // 3)}
    first, second = parts(2, replace(CONFIG, read_ahead=ahead)), parts(world, CONFIG)
    assert steps(first, stop) == undisturbed[:stop]
    state = join_states([part.state_dict() for part in first])
    assert state["step"] == stop
    for part in second:
        part.load_state_dict(state)
    assert steps(second, 15 - stop) == undisturbed[stop:]


def test_a_state_without_a_step_is_of_a_run_that_needs_none(shapes: Manifest) -> None:
    held = loader([shapes], CONFIG)
    wanted = list(islice(held, 4))[2:]
    again = loader([shapes], CONFIG)
    list(islice(again, 2))
    state = {k: v for k, v in again.state_dict().items() if k != "step"}
    fresh = loader([shapes], CONFIG)
    fresh.load_state_dict(state)
    assert list(islice(fresh, 2)) == wanted
