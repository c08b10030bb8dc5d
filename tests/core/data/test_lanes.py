"""The lane order against what it promises: a partition, once an epoch, a pure function, within a window."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_core.data.lanes import Blend, LaneError, LaneOrder, generator

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def _read(order: LaneOrder, lane: int, epoch: int) -> list[tuple[int, int]]:
    size = order.size(lane)
    places = [order.locate(lane, epoch * size + i) for i in range(size)]
    assert {place.epoch for place in places} == {epoch}
    return [(place.shard, place.row) for place in places]


@given(sizes=SIZES, lanes=st.integers(1, 6), window=st.integers(1, 12), epoch=st.integers(0, 3))
def test_every_sample_is_read_once_an_epoch(sizes: list[int], lanes: int, window: int, epoch: int) -> None:
    if sum(sizes) < lanes:
        return
    order = LaneOrder(sizes, lanes=lanes, seed="s", window=window)
    read = [place for lane in range(lanes) for place in _read(order, lane, epoch)]
    assert sorted(read) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    spread = [order.size(lane) for lane in range(lanes)]
    assert max(spread) - min(spread) <= 1


def test_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    def read(seed: str, epoch: int) -> list[tuple[int, int]]:
        return _read(LaneOrder([40, 40], lanes=2, seed=seed, window=64), 1, epoch)

    assert read("a", 0) == read("a", 0)
    assert read("a", 0) != read("a", 1)
    assert read("a", 0) != read("b", 0)


def test_a_window_of_one_reads_shards_in_sequence() -> None:
    order = LaneOrder([5, 5, 5, 5], lanes=1, seed="s", window=1)
    rows = _read(order, 0, 0)
    assert [row for _, row in rows] == [0, 1, 2, 3, 4] * 4
    assert Counter(shard for shard, _ in rows) == {0: 5, 1: 5, 2: 5, 3: 5}


@given(sizes=SIZES, window=st.integers(1, 12), windows=st.integers(0, 30))
def test_upcoming_shards_are_those_of_this_and_the_next_window(
    sizes: list[int], window: int, windows: int
) -> None:
    if sum(sizes) < 2:
        return
    order = LaneOrder(sizes, lanes=2, seed="s", window=window)
    size = order.size(1)
    bounds = [e * size + o for e in range(33) for o in range(0, size, window)]
    begin, _, stop = bounds[windows : windows + 3]
    assert set(order.upcoming(1, begin)) == {order.locate(1, i).shard for i in range(begin, stop)}
    assert all(not order.upcoming(1, i) for i in range(begin, stop) if i not in bounds)
    within = bounds[windows + 1] - 1
    assert order.upcoming(1, within, begins=True) == order.upcoming(1, begin)


def test_a_large_window_mixes_well() -> None:
    order = LaneOrder([500, 500], lanes=1, seed="s", window=1000)
    flat = [shard * 500 + row for shard, row in _read(order, 0, 0)]
    assert abs(np.corrcoef(flat, np.arange(1000))[0, 1]) < 0.1


def test_too_few_samples_are_refused_with_the_mend() -> None:
    with pytest.raises(LaneError, match="3 samples cannot feed 4 lanes; lower data.lanes"):
        LaneOrder([3], lanes=4, seed="s", window=8)


@given(weights=st.lists(st.floats(0.05, 10), min_size=1, max_size=4), lane=st.integers(0, 3))
def test_blend_holds_every_share_to_one_sample(weights: list[float], lane: int) -> None:
    named = {f"c{i}": w for i, w in enumerate(weights)}
    blend = Blend(named, seed="s", lane=lane)
    drawn = dict.fromkeys(named, 0)
    for total in range(1, 200):
        drawn[blend.choose(drawn)] += 1
        for name, weight in named.items():
            assert abs(drawn[name] - total * weight / sum(weights)) <= len(weights)


@given(weights=st.lists(st.floats(0.05, 10), min_size=1, max_size=4), count=st.integers(1, 40))
def test_draws_until_is_enough(weights: list[float], count: int) -> None:
    named = {f"c{i}": w for i, w in enumerate(weights)}
    blend = Blend(named, seed="s", lane=0)
    drawn = dict.fromkeys(named, 0)
    for _ in range(blend.draws_until(dict.fromkeys(named, count))):
        drawn[blend.choose(drawn)] += 1
    assert min(drawn.values()) >= count


def test_blend_refuses_a_weight_of_zero() -> None:
    with pytest.raises(LaneError, match="must be positive"):
        Blend({"a": 1.0, "b": 0.0}, seed="s", lane=0)


def test_golden_generator_and_order() -> None:
    """SAMPLE ORDER: a change here changes what every resumed run reads."""
    assert generator("seed", 3, "doc").integers(0, 1000, 4).tolist() == GOLDEN_DRAW
    order = LaneOrder([4, 4], lanes=2, seed="golden", window=8)
    assert [_read(order, lane, 0) for lane in range(2)] == GOLDEN_ORDER


GOLDEN_DRAW = [770, 300, 289, 294]
GOLDEN_ORDER = [[(0, 1), (0, 0), (0, 2), (0, 3)], [(1, 2), (1, 1), (1, 0), (1, 3)]]
