"""Where a loader stands, as a few hundred bytes: counts of every lane against the least of all, and who went ahead.

The text of a state's `lanes` is base64 of a deflated run of integers of seven bits a byte: for every corpus, by name,
the least count of all lanes and what each has more; then for every lane the places handed out ahead, as the bits of
one number. A worker's state names its `part`: [rank, world size], whose lanes are rank, rank + world size, ...
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oneflow_core.data.lanes import LaneError
from oneflow_core.data.packer import LanePosition

STATE_SCHEMA = 3


def state_of(
    positions: Mapping[int, LanePosition], names: Sequence[str], rank: int, world_size: int
) -> dict[str, Any]:
    """The part of a state that says where lanes stand."""
    ordered = [positions[lane] for lane in sorted(positions)]
    return {"part": [rank, world_size], "lanes": _packed(ordered, sorted(names))}


def positions_of(state: Mapping[str, Any]) -> dict[int, LanePosition]:
    """Where the lanes of a state stand; states of schema 2 hold them in plain JSON.

    Raises:
        LaneError: another schema, or a state that was damaged.
    """
    schema = state.get("schema")
    if schema not in (2, STATE_SCHEMA):
        found = f"the state has schema {schema!r}, this program reads 2 and {STATE_SCHEMA}"
        raise LaneError(f"{found}; resume with the program that wrote it, or begin anew")
    try:
        if schema == 2:
            return {int(lane): _plain(state, lane) for lane in state["lanes"]}
        rank, world_size = state["part"]
        lanes = range(rank, state["lane_count"], world_size)
        return dict(zip(lanes, _unpacked(state["lanes"], len(lanes), sorted(state["corpora"])), strict=True))
    except (KeyError, TypeError, ValueError, IndexError, zlib.error) as error:
        raise LaneError(f"the state is damaged ({error!r:.100}); resume from an earlier checkpoint") from None


def join_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of all lanes from those of all workers."""
    positions = {lane: position for state in states for lane, position in positions_of(state).items()}
    return {**states[0], **state_of(positions, list(states[0]["corpora"]), 0, 1), "schema": STATE_SCHEMA}


def _plain(state: Mapping[str, Any], lane: str) -> LanePosition:
    consumed = {name: int(count) for name, count in state["lanes"][lane].items()}
    return LanePosition(consumed, tuple(state["ahead"][lane]))


def _packed(positions: Sequence[LanePosition], names: Sequence[str]) -> str:
    run = bytearray()
    for name in names:
        counts = [position.consumed[name] for position in positions]
        for number in (least := min(counts), *(count - least for count in counts)):
            _append(run, number)
    for position in positions:
        _append(run, sum(1 << place for place in position.ahead))
    return base64.b64encode(zlib.compress(bytes(run), 9)).decode()


def _unpacked(text: str, lanes: int, names: Sequence[str]) -> Iterator[LanePosition]:
    numbers = list(_numbers(zlib.decompress(base64.b64decode(text, validate=True))))
    if len(numbers) != len(names) * (lanes + 1) + lanes:
        raise ValueError(f"{len(numbers)} numbers for {lanes} lanes of {len(names)} corpora")
    starts = [place * (lanes + 1) for place in range(len(names))]
    for lane in range(lanes):
        consumed = {n: numbers[s] + numbers[s + 1 + lane] for n, s in zip(names, starts, strict=True)}
        bits = numbers[len(names) * (lanes + 1) + lane]
        yield LanePosition(consumed, tuple(place for place in range(bits.bit_length()) if bits >> place & 1))


def _append(run: bytearray, number: int) -> None:
    while number > 0x7F:
        run.append(number & 0x7F | 0x80)
        number >>= 7
    run.append(number)


def _numbers(run: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in run:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("it ends within a number")
