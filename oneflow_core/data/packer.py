"""One lane as packs: which of its next documents share one, and where the lane stands after it.

A pack takes documents in reading order while the next `look_ahead` of them would fill less than half of the room
left, then the subset of these that fills it best. What is left out opens the next pack, so no document waits for
more than `look_ahead` packs. Where a lane stands is then few integers: the documents of each corpus before the
first that was not handed out, and the places of those after it that were.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from oneflow_core.data.lanes import Blend, LaneError


class Sized(Protocol):
    """What `prepare` makes of a sample."""

    @property
    def length(self) -> int:
        """Tokens that it takes in a pack."""


E = TypeVar("E", bound=Sized)


class RefusedSample(ValueError):
    """`prepare` raises it for a sample that cannot be trained on; `reason` is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LanePosition:
    """Where a lane stands; only what was handed out is in it, never what was looked at."""

    consumed: dict[str, int]
    """Documents of each corpus before the first that was not handed out."""
    ahead: tuple[int, ...] = ()
    """Places of documents handed out after that one, counted in the lane's order from it (which is 0)."""


@dataclass(slots=True)
class _Draw(Generic[E]):
    """A document of the lane, of which `example` is None once it is handed out, or where it never will be."""

    number: int
    corpus: str
    example: E | None
    handed_out: bool
    refused: str | None


class Packer(Generic[E]):
    """Packs of one lane, from `position` on, each a function of what is in the position alone.

    Args:
        blend: which corpus is drawn from next.
        example: the example of a corpus after so many documents, None for one that is passed over; raises
            RefusedSample for one that is refused.
        tokens: room in a pack; no example is longer.
        look_ahead: documents among which the last ones of a pack are chosen, and that are held in memory for it; 1
            keeps the reading order.
        patience: documents without a usable one after which there will be none.
    """

    def __init__(
        self,
        position: LanePosition,
        blend: Blend,
        example: Callable[[str, int], E | None],
        *,
        tokens: int,
        look_ahead: int,
        patience: int,
    ) -> None:
        self._blend, self._example = blend, example
        self._tokens, self._look_ahead, self._patience = tokens, look_ahead, patience
        self._consumed, self._drawn = dict(position.consumed), dict(position.consumed)
        self._skip = frozenset(position.ahead)
        self._numbers = 0
        self._draws: deque[_Draw[E]] = deque()
        self._window: list[_Draw[E]] = []

    def __iter__(self) -> Iterator[tuple[list[E], LanePosition, Counter[str]]]:
        """Examples of one pack after another, with the position after each and what was refused before it.

        Raises:
            LaneError: the lane holds nothing that can be used.
        """
        while True:
            examples = self._pack()
            refused = self._pass_by()
            first = self._draws[0].number if self._draws else 0
            ahead = tuple(d.number - first for d in self._draws if d.handed_out)
            yield examples, LanePosition(dict(self._consumed), ahead), refused

    def _pack(self) -> list[E]:
        self._look()
        examples, room = [self._take(0)], self._tokens
        room -= examples[0].length
        self._look()
        while 2 * room > sum(lengths := self._lengths()) and room >= lengths[0]:
            examples.append(self._take(0))
            room -= lengths[0]
            self._look()
        chosen = best_subset(room, self._lengths())
        examples += [self._take(place - taken) for taken, place in enumerate(chosen)]
        return examples

    def _lengths(self) -> list[int]:
        return [draw.example.length for draw in self._window if draw.example is not None]

    def _take(self, place: int) -> E:
        draw = self._window.pop(place)
        example, draw.example, draw.handed_out = draw.example, None, True
        assert example is not None
        return example

    def _look(self) -> None:
        """Draws until the window is full."""
        idle, refused = 0, Counter[str]()
        while len(self._window) < self._look_ahead:
            draw = self._draw()
            self._draws.append(draw)
            if draw.example is not None:
                self._window.append(draw)
                idle = 0
                continue
            idle += not draw.handed_out
            refused.update([draw.refused] if draw.refused else [])
            if idle > self._patience:
                found = f"a lane read {idle} documents and could use none (refused: {dict(refused)})"
                raise LaneError(f"{found}; lower data.lanes, or change data.holdout or data.tokens")

    def _draw(self) -> _Draw[E]:
        number, corpus = self._numbers, self._blend.choose(self._drawn)
        draw = _Draw[E](number, corpus, None, number in self._skip, None)
        if not draw.handed_out:
            try:
                draw.example = self._example(corpus, self._drawn[corpus])
            except RefusedSample as error:
                draw.refused = error.reason
        self._drawn[corpus] += 1
        self._numbers += 1
        return draw

    def _pass_by(self) -> Counter[str]:
        """Moves the position up to the first document that still waits; what was refused on the way."""
        refused = Counter[str]()
        while self._draws and self._draws[0].example is None:
            draw = self._draws.popleft()
            self._consumed[draw.corpus] += 1
            refused.update([draw.refused] if draw.refused else [])
        return refused


def best_subset(room: int, lengths: Sequence[int]) -> list[int]:
    """Places, ascending, of the lengths whose sum comes closest to `room` from below; of equal ones the earliest.

    Exact: bit s of a reach says that some subset of the lengths so far sums to s.
    """
    within = (1 << (room + 1)) - 1
    reaches = [1]
    for length in lengths:
        reaches.append((reaches[-1] | reaches[-1] << length) & within)
    rest, places = reaches[-1].bit_length() - 1, []
    for place in reversed(range(len(lengths))):
        if not reaches[place] >> rest & 1:
            places.append(place)
            rest -= lengths[place]
    return places[::-1]
