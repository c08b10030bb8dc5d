"""Selection: which of the documents that ingest kept are taken into a corpus, and why the others are not.

What is said here depends on more than one row: deny lists, duplicates, shares and weights, in this order. It is a
function of the config and of the parts alone, so that encode and shard, on any machine, take the same. To find
duplicates 16 bytes of each document are held, and as many again while they are ordered.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from oneflow_core.data.manifest import Account
from workflows.corpus import refusals
from workflows.corpus.accounts import closed
from workflows.corpus.config import CorpusConfig
from workflows.corpus.denial import denied, denied_rows
from workflows.corpus.duplicates import DIGEST, nearly_repeated, repeated
from workflows.corpus.hashes import read_hashes
from workflows.corpus.ingest import UnitReport, accounts
from workflows.corpus.parts import READERS_AT_ONCE, read_part
from workflows.errors import UsageError

Codes = NDArray[np.uint8]
T = TypeVar("T")
TAKEN = 0
REASONS = (
    "",
    "left out by share",
    "left out by weight",
    "duplicate",
    "near duplicate",
    "denied",
    *refusals.REASONS,
)
"""Code -> why a document is left out."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A code of `REASONS` for every row of every unit's part, in the order of the units."""

    codes: tuple[Codes, ...]

    def taken(self, unit: int) -> NDArray[np.bool_]:
        """Which rows of the part of unit number `unit` are taken."""
        found: NDArray[np.bool_] = self.codes[unit] == TAKEN
        return found

    def left_out(self, units: Sequence[UnitReport]) -> dict[str, Counter[str]]:
        """By source: how many documents were left out, by reason."""
        found: dict[str, Counter[str]] = {}
        for unit, codes in zip(units, self.codes, strict=True):
            counts = found.setdefault(unit.unit.source, Counter())
            for code, count in zip(*np.unique(codes[codes != TAKEN], return_counts=True), strict=True):
                counts[REASONS[code]] += int(count)
        return found

    def accounts(self, units: Sequence[UnitReport]) -> dict[str, Account]:
        """By source: what was read, taken, and refused or left out.

        Raises:
            OneFlowError: one does not close.
        """
        taken: Counter[str] = Counter()
        for number, unit in enumerate(units):
            taken[unit.unit.source] += int(self.taken(number).sum())
        left = self.left_out(units)
        return {
            source: closed(
                f"source {source}",
                Account(read.read, taken[source], dict(Counter(read.refused) + left[source])),
            )
            for source, read in accounts(units).items()
        }


def select(
    config: CorpusConfig, units: Sequence[UnitReport], refused: refusals.Refusals | None = None
) -> Selection:
    """What is taken of the parts of `units`, without documents that name an image of `refused` (None: all that encode
    has refused so far).

    Raises:
        UsageError: some sources have a weight and others have none.
        OneFlowError: near duplicates are looked for, and a unit was not hashed; an account that does not close.
    """
    codes = [np.zeros(unit.account.kept, np.uint8) for unit in units]
    _without_refused(units, codes, refusals.Refusals.load(config) if refused is None else refused)
    _without_denied(config, units, codes)
    _without_duplicates(config, units, codes)
    _without_near_duplicates(config, units, codes)
    shares = {source.name: source.share for source in config.sources}
    _thin(config, units, codes, shares, REASONS.index("left out by share"))
    _thin(config, units, codes, _by_weight(config, units, codes), REASONS.index("left out by weight"))
    selection = Selection(tuple(codes))
    selection.accounts(units)
    return selection


def order_of(seed: int, doc_id: str) -> int:
    """A document's place in the global order, of 2**64."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{doc_id}".encode(), digest_size=8).digest(), "big")


def _without_denied(config: CorpusConfig, units: Sequence[UnitReport], codes: list[Codes]) -> None:
    """Leave out what a deny list names."""
    if not config.deny:
        return
    entries = denied(config.filled(config.deny))

    def mark(place: int) -> None:
        found = denied_rows(read_part(units[place].url, ["doc_id", "images"]), entries)
        codes[place][found & (codes[place] == TAKEN)] = REASONS.index("denied")

    _each(units, mark)


def _without_duplicates(config: CorpusConfig, units: Sequence[UnitReport], codes: list[Codes]) -> None:
    """Leave out what says, or shows, what an earlier document does."""
    if config.duplicates.exact == "off" or not units:
        return
    column = "content" if config.duplicates.exact == "document" else "pictures"

    def read(place: int) -> NDArray[np.void]:
        return _fixed(read_part(units[place].url, [column])[column], DIGEST)[codes[place] == TAKEN]

    found = repeated(np.concatenate(_each(units, read)))
    _mark(codes, [held == TAKEN for held in codes], found, REASONS.index("duplicate"))


def _without_near_duplicates(config: CorpusConfig, units: Sequence[UnitReport], codes: list[Codes]) -> None:
    """Leave out what shows almost what an earlier document does, and says the same if it is an instruction."""
    if config.duplicates.near == "off" or not units:
        return

    def read(place: int) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.uint64]]:
        unit = units[place]
        values, known = read_hashes(unit.url)
        texts = read_part(unit.url, ["texts"])["texts"].fill_null(bytes(8))
        chosen = known & (codes[place] == TAKEN)
        return chosen, values[chosen], _fixed(texts, np.dtype("u8"))[chosen]

    chosen, values, groups = zip(*_each(units, read), strict=True)
    found = nearly_repeated(np.concatenate(values), np.concatenate(groups), config.duplicates.distance)
    _mark(codes, chosen, found, REASONS.index("near duplicate"))


def _mark(
    codes: Sequence[Codes], chosen: Sequence[NDArray[np.bool_]], found: NDArray[np.bool_], code: int
) -> None:
    """Set `code` where `found` is true, which has a place for each row that was chosen, unit by unit."""
    start = 0
    for held, rows in zip(codes, chosen, strict=True):
        count = int(rows.sum())
        held[np.flatnonzero(rows)[found[start : start + count]]] = code
        start += count


def _fixed(column: pa.ChunkedArray, kind: np.dtype[Any]) -> NDArray[Any]:
    """A column of binary values, all as long as `kind`, as an array of it."""
    return np.concatenate(
        [
            np.zeros(0, kind),
            *(np.frombuffer(c.buffers()[1], kind)[c.offset :][: len(c)] for c in column.chunks),
        ]
    )


def _each(units: Sequence[UnitReport], read: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
        return list(pool.map(read, range(len(units))))


def _without_refused(units: Sequence[UnitReport], codes: list[Codes], refused: refusals.Refusals) -> None:
    """Leave out documents that name an image that was refused."""
    for place, unit in enumerate(units) if len(refused.images) else ():
        found = refused.rows(read_part(unit.url, ["images"])["images"])
        first = REASONS.index(refusals.REASONS[0])
        codes[place][found >= 0] = first + found[found >= 0]


def _thin(
    config: CorpusConfig,
    units: Sequence[UnitReport],
    codes: list[Codes],
    shares: Mapping[str, float],
    code: int,
) -> None:
    """Leave out what is not among the share of its source, chosen by seed and document id."""

    def thin(place: int) -> None:
        share = shares[units[place].unit.source]
        if share >= 1 or not len(codes[place]):
            return
        ids = read_part(units[place].url, ["doc_id"])["doc_id"].to_pylist()
        drawn = [order_of(config.seed, f"{code}:{doc_id}") >= share * 2**64 for doc_id in ids]
        codes[place][np.array(drawn) & (codes[place] == TAKEN)] = code

    _each(units, thin)


def _by_weight(config: CorpusConfig, units: Sequence[UnitReport], codes: Sequence[Codes]) -> dict[str, float]:
    """The share of each source that brings the sources to their weights, the scarcest taken whole."""
    weights = {source.name: source.weight for source in config.sources}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return dict.fromkeys(weights, 1.0)
    if len(given) < len(weights):
        without = next(name for name, weight in weights.items() if weight is None)
        raise UsageError(
            f"source {without}", "it has no weight, and others have", "give all a weight, or none"
        )
    counts = dict.fromkeys(weights, 0)
    for unit, held in zip(units, codes, strict=True):
        counts[unit.unit.source] += int((held == TAKEN).sum())
    scale = min(counts[name] / weight for name, weight in given.items())
    return {name: weight * scale / max(counts[name], 1) for name, weight in given.items()}
