"""Selection: which of the documents that ingest kept are taken into a corpus, and why the others are not.

What is said here depends on more than one row: shares and weights of sources. It is a function of the config and of
the parts alone, so that encode and shard, on any machine, take the same.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workflows.corpus import refusals
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport
from workflows.corpus.parts import READERS_AT_ONCE, read_part
from workflows.errors import UsageError

Codes = NDArray[np.uint8]
TAKEN = 0
REASONS = ("", "left out by share", "left out by weight", *refusals.REASONS)
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


def select(
    config: CorpusConfig, units: Sequence[UnitReport], refused: refusals.Refusals | None = None
) -> Selection:
    """What is taken of the parts of `units`, without documents that name an image of `refused` (None: all that encode
    has refused so far).

    Raises:
        UsageError: some sources have a weight and others have none.
    """
    codes = [np.zeros(unit.account.kept, np.uint8) for unit in units]
    _without(units, codes, refusals.Refusals.load(config) if refused is None else refused)
    shares = {source.name: source.share for source in config.sources}
    _thin(config, units, codes, shares, REASONS.index("left out by share"))
    _thin(config, units, codes, _by_weight(config, units, codes), REASONS.index("left out by weight"))
    return Selection(tuple(codes))


def order_of(seed: int, doc_id: str) -> int:
    """A document's place in the global order, of 2**64."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{doc_id}".encode(), digest_size=8).digest(), "big")


def _without(units: Sequence[UnitReport], codes: list[Codes], refused: refusals.Refusals) -> None:
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

    with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
        list(pool.map(thin, range(len(units))))


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
