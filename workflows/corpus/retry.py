"""Retry: files with refused rows are ingested once more, and images that encode refused may be encoded again.

What comes out lies beside what was there; the next build takes it. Where nothing came out otherwise, nothing changes.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from workflows.corpus import ingest
from workflows.corpus.cluster import cluster
from workflows.corpus.config import CorpusConfig
from workflows.corpus.holds import building
from workflows.corpus.ingest import UnitReport
from workflows.corpus.ingested import part_of, stored
from workflows.corpus.parts import read_part
from workflows.corpus.quarantine import Wanted, is_filtered, parts
from workflows.corpus.units import Unit, kept_of, list_units
from workflows.storage import delete

Rows = Counter[tuple[str, str]]
"""(key, reason) of refused rows -> how many."""


@dataclass(frozen=True, slots=True)
class RetryReport:
    """What became of refused rows that were tried again."""

    files: int
    """Files that were ingested again."""
    recovered: int
    """Rows that were refused and are not any more."""
    still: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows that are refused again."""
    new: int = 0
    """Rows that were not refused before and are now."""
    images: int = 0
    """Images that encode refused, which the next build tries again."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "files": self.files,
            "recovered": self.recovered,
            "still_refused": sum(self.still.values()),
            "still": dict(self.still),
            "newly_refused": self.new,
            "images": self.images,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class _Try:
    """A unit that is ingested once more; `before` is (key, reason) of what was refused of it."""

    unit: Unit
    attempt: int
    before: Rows
    old: UnitReport | None
    """What is there of it as it is now; None where the file was changed since."""


def retry(config: CorpusConfig, wanted: Wanted) -> RetryReport:
    """Try again what was refused of the sources of `config` and is wanted; of filtered rows only those that are named.

    Raises:
        OneFlowError: a source with no input, storage or a cluster that fails, another process that builds the corpus.
    """
    with building(config.root, config.name):
        return _retry(config, wanted)


def _retry(config: CorpusConfig, wanted: Wanted) -> RetryReport:
    begin = time.monotonic()
    images = _forget(config, wanted) if wanted.stage != "ingest" else 0
    tries = list(_tries(config, wanted)) if wanted.stage != "encode" else []
    if tries:
        for one in tries:
            # What was fetched for its rows, and what could not be: it is fetched again.
            delete(kept_of(config, one.unit))
        with cluster():
            ingest.ingest_units(config, [t.unit for t in tries], {t.unit: t.attempt for t in tries})
    after = ingest.reports(config, [one.unit for one in tries])
    counts = [_compared(one.before, _refused(new)) for one, new in zip(tries, after, strict=True)]
    for one, new in zip(tries, after, strict=True):
        _drop_if_same(one.old, new)
    recovered, fresh = (sum(c[i].total() for c in counts) for i in (0, 2))
    still = sum((count[1] for count in counts), Counter[str]())
    return RetryReport(len(tries), recovered, dict(still), fresh, images, time.monotonic() - begin)


def _tries(config: CorpusConfig, wanted: Wanted) -> Iterator[_Try]:
    there = stored(config)
    units = [unit for unit in list_units(config) if wanted.source in (None, unit.source)]
    names = [part_of(config, unit) for unit in units]
    found = [unit for unit, name in zip(units, names, strict=True) if (unit.source, name) in there]
    for report in ingest.reports(config, found):
        if any(_is_wanted(reason, wanted) for reason in report.account.refused):
            yield _Try(
                report.unit,
                there[report.unit.source, part_of(config, report.unit)][0] + 1,
                _refused(report),
                report,
            )
    past = {part.url.rpartition("/")[2].rpartition("-")[0]: part.url for part in parts(config.root, "ingest")}
    for unit, name in zip(units, names, strict=True):
        url = past.get(f"part-{unit.source}-{name.split('-')[1]}")
        if (unit.source, name) not in there and url is not None:
            before = _rows_at(url)
            if any(_is_wanted(reason, wanted) for _, reason in before):
                yield _Try(unit, 0, before, None)


def _is_wanted(reason: str, wanted: Wanted) -> bool:
    return reason.startswith(wanted.reason) if wanted.reason is not None else not is_filtered(reason)


def _refused(report: UnitReport) -> Rows:
    return _rows_at(report.quarantine) if report.account.refused else Counter()


def _rows_at(url: str) -> Rows:
    rows = read_part(url, ["key", "reason"])
    return Counter(zip(rows["key"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def _compared(before: Rows, after: Rows) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Keys that are not refused any more, reasons of what is refused again, keys that are refused anew."""
    old, new = (_keys(rows) for rows in (before, after))
    again = Counter[str]()
    for (key, reason), count in after.items():
        again[reason] += min(count, old[key])
    return old - new, +again, new - old


def _keys(rows: Rows) -> Counter[str]:
    found: Counter[str] = Counter()
    for (key, _), count in rows.items():
        found[key] += count
    return found


def _drop_if_same(old: UnitReport | None, new: UnitReport) -> None:
    """Take away an attempt that came out as the one before, so that there is nothing to build."""
    if old and (old.documents_sha256, old.account) == (new.documents_sha256, new.account):
        delete(new.url)
        delete(new.quarantine)


def _forget(config: CorpusConfig, wanted: Wanted) -> int:
    """Take back refusals of encode, part by part, where one is of a source of `config` and wanted; how many."""
    own = [source.name for source in config.sources]
    count = 0
    for part in parts(config.root, "encode"):
        rows = read_part(part.url)
        ours = wanted.of(rows.filter(pc.is_in(rows["source"], value_set=pa.array(own, pa.string()))))
        if ours.num_rows:
            delete(part.url)
            count += rows.num_rows
    return count
