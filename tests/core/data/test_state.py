"""A loader's state: small, exact, and of older programs or damaged ones told apart."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_core.data.lanes import LaneError
from oneflow_core.data.packer import LanePosition
from oneflow_core.data.state import STATE_SCHEMA, join_states, positions_of, state_of

IDENTITY = {"schema": STATE_SCHEMA, "corpora": {"a": "v1", "b": "v2"}, "seed": 0, "step": 9}
COUNTS = st.integers(0, 2**40)
AHEAD = st.sets(st.integers(1, 600), max_size=12).map(lambda places: tuple(sorted(places)))
POSITION = st.builds(lambda a, b, ahead: LanePosition({"a": a, "b": b}, ahead), COUNTS, COUNTS, AHEAD)


@given(st.lists(POSITION, min_size=4, max_size=12).filter(lambda held: len(held) % 4 == 0), st.data())
def test_states_of_workers_join_to_where_all_lanes_stand(
    positions: list[LanePosition], data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([1, 2, 4]))
    states = []
    for rank in range(world):
        mine = {lane: positions[lane] for lane in range(rank, len(positions), world)}
        states.append({**IDENTITY, "lane_count": len(positions), **state_of(mine, ["b", "a"], rank, world)})
    joined = json.loads(json.dumps(join_states(states)))
    assert positions_of(joined) == dict(enumerate(positions))


def test_sixty_four_lanes_take_a_few_hundred_bytes() -> None:
    """Counts of an epoch's 90% of a billion samples, as lanes of equal speed stand, and eight places ahead each."""
    rng = np.random.default_rng(0)
    positions = {
        lane: LanePosition(
            {"laion": 14_000_000 + int(rng.normal(0, 200)) + 600},
            tuple(sorted(rng.choice(np.arange(1, 30), 8, replace=False).tolist())),
        )
        for lane in range(64)
    }
    state = {**IDENTITY, "lane_count": 64, **state_of(positions, ["laion"], 0, 1)}
    assert len(json.dumps(state)) < 800


def test_the_state_of_schema_2_is_read() -> None:
    """CHECKPOINT: what a run wrote before is resumed."""
    old = {
        "schema": 2, "corpora": {"shapes": "v1"}, "lane_count": 2, "seed": 0, "step": 5,
        "lanes": {"0": {"shapes": 21}, "1": {"shapes": 19}}, "ahead": {"0": [2, 3], "1": []},
    }  # fmt: skip
    wanted = {0: LanePosition({"shapes": 21}, (2, 3)), 1: LanePosition({"shapes": 19})}
    assert positions_of(old) == wanted
    assert positions_of(join_states([old])) == wanted


GOLDEN = "eNpbw8TAyM7A0MTCAAAIkwE9"


def test_the_golden_state_is_read() -> None:
    """CHECKPOINT: a change here orphans the checkpoints of runs; raise STATE_SCHEMA with it."""
    positions = {0: LanePosition({"a": 300, "b": 7}, (1, 9)), 1: LanePosition({"a": 301, "b": 7})}
    state = {**IDENTITY, "lane_count": 2, "part": [0, 1], "lanes": GOLDEN}
    assert positions_of(state) == positions


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 1}, "schema 1, this program reads 2 and 3"),
        ({"schema": 4}, "schema 4"),
        ({"lanes": GOLDEN[:-8] + GOLDEN[-4:]}, "damaged"),
        ({"lanes": "?"}, "damaged"),
        ({"lane_count": 3}, "damaged"),
        ({"corpora": {"a": "v1"}}, "damaged"),
        ({"part": [0, 2]}, "damaged"),
    ],
)
def test_what_is_no_state_is_refused(change: dict[str, object], told: str) -> None:
    state = {**IDENTITY, "lane_count": 2, "part": [0, 1], "lanes": GOLDEN, **change}
    with pytest.raises(LaneError, match=told):
        positions_of(state)
