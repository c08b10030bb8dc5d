"""Packs of a lane: the best subset against brute force, nothing lost or read twice, resume from any pack."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.data.lanes import Blend, LaneError
from oneflow_core.data.packer import LanePosition, Packer, RefusedSample, best_subset

TOKENS = 24
HELD_OUT, REFUSED = 0, -1


@dataclass(frozen=True)
class Document:
    corpus: str
    place: int
    length: int


def packer(
    lengths: dict[str, list[int]], look_ahead: int, position: LanePosition | None = None
) -> Packer[Document]:
    """Corpora that repeat their `lengths` for ever; 0 stands for a document held out, -1 for one refused."""

    def example(corpus: str, place: int) -> Document | None:
        length = lengths[corpus][place % len(lengths[corpus])]
        if length == REFUSED:
            raise RefusedSample("broken")
        return Document(corpus, place, length) if length else None

    start = LanePosition(dict.fromkeys(lengths, 0))
    blend = Blend(dict.fromkeys(lengths, 1.0), seed="s", lane=0)
    return Packer(position or start, blend, example, tokens=TOKENS, look_ahead=look_ahead, patience=99)


def order(lengths: dict[str, list[int]], count: int) -> list[Document]:
    """The lane's documents in reading order, usable or not."""
    blend, drawn = Blend(dict.fromkeys(lengths, 1.0), seed="s", lane=0), dict.fromkeys(lengths, 0)
    documents = []
    for _ in range(count):
        corpus = blend.choose(drawn)
        documents.append(
            Document(corpus, drawn[corpus], lengths[corpus][drawn[corpus] % len(lengths[corpus])])
        )
        drawn[corpus] += 1
    return documents


LENGTHS = st.lists(st.integers(REFUSED, TOKENS), min_size=1, max_size=12).filter(lambda ls: max(ls) > 0)
CORPORA = st.lists(LENGTHS, min_size=1, max_size=2).map(lambda ls: {f"c{i}": v for i, v in enumerate(ls)})


@given(room=st.integers(0, 40), lengths=st.lists(st.integers(1, 30), max_size=9))
def test_the_best_subset_is_that_of_brute_force(room: int, lengths: list[int]) -> None:
    sums = [sum(c) for n in range(len(lengths) + 1) for c in combinations(lengths, n)]
    chosen = best_subset(room, lengths)
    assert chosen == sorted(set(chosen))
    assert sum(lengths[place] for place in chosen) == max(s for s in sums if s <= room)


@given(corpora=CORPORA, look_ahead=st.integers(1, 6), packs=st.integers(1, 12))
@settings(deadline=None)
def test_what_was_handed_out_is_what_the_position_says(
    corpora: dict[str, list[int]], look_ahead: int, packs: int
) -> None:
    made = list(islice(packer(corpora, look_ahead), packs))
    assert all(0 < sum(e.length for e in examples) <= TOKENS for examples, _, _ in made)
    read = [e for examples, _, _ in made for e in examples]
    refused = sum(left_out.total() for _, _, left_out in made)
    position = made[-1][1]
    passed = sum(position.consumed.values())
    documents = order(corpora, passed + max(position.ahead, default=0) + 1)
    before, after = documents[:passed], documents[passed:]
    expected = [d for d in before if d.length > 0] + [after[place] for place in position.ahead]
    assert sorted(map(repr, read)) == sorted(map(repr, expected))
    assert refused == sum(d.length == REFUSED for d in before)
    assert len(position.ahead) <= look_ahead
    assert 0 not in position.ahead


@given(corpora=CORPORA, look_ahead=st.integers(1, 6), stop=st.integers(0, 8))
@settings(deadline=None)
def test_from_any_position_the_packs_go_on_as_if_nothing_had_happened(
    corpora: dict[str, list[int]], look_ahead: int, stop: int
) -> None:
    whole = list(islice(packer(corpora, look_ahead), stop + 6))
    position = whole[stop - 1][1] if stop else None
    assert list(islice(packer(corpora, look_ahead, position), 6)) == whole[stop:]


@given(corpora=CORPORA, look_ahead=st.integers(1, 6))
@settings(deadline=None)
def test_the_document_that_waits_longest_is_in_the_next_pack(
    corpora: dict[str, list[int]], look_ahead: int
) -> None:
    waiting = next(d for d in order(corpora, 99) if d.length > 0)
    for examples, position, _ in islice(packer(corpora, look_ahead), 8):
        assert examples[0] == waiting
        passed = sum(position.consumed.values())
        rest = list(enumerate(order(corpora, passed + 99)[passed:]))
        waiting = next(d for place, d in rest if d.length > 0 and place not in position.ahead)


@given(corpora=CORPORA)
@settings(deadline=None)
def test_looking_at_one_document_is_next_fit(corpora: dict[str, list[int]]) -> None:
    documents = [d for d in order(corpora, 2000) if d.length > 0]
    expected, room = [[]], TOKENS
    for document in documents:
        if document.length > room:
            expected.append([])
            room = TOKENS
        expected[-1].append(document)
        room -= document.length
    packs = [examples for examples, _, _ in islice(packer(corpora, 1), 5)]
    assert packs == expected[:5]


def test_a_wider_look_fills_packs_better() -> None:
    """Lengths of 5 to 11 leave 24 a gap of 3.5 in reading order, and next to none when chosen among 8."""
    corpora = {"c": [5 + (7 * i) % 11 % 7 for i in range(11)]}
    filled = {}
    for look_ahead in (1, 8):
        packs = [examples for examples, _, _ in islice(packer(corpora, look_ahead), 200)]
        filled[look_ahead] = sum(e.length for pack in packs for e in pack) / (200 * TOKENS)
    assert filled[1] < 0.9
    assert filled[8] > 0.98


def test_a_lane_without_a_usable_document_is_an_error() -> None:
    with pytest.raises(LaneError, match=r"read 100 documents and could use none \(refused: {'broken': 50}"):
        next(iter(packer({"c": [HELD_OUT, REFUSED]}, 4)))
