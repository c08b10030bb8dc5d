"""Ingest: each input file becomes a part of documents, and a part of what was refused. One task a file.

The images stay in the source, which is read again when they are encoded; a document names them by SHA-256. Rows go to
the parts as they are read, so a task holds some thousand of them whatever the file has.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oneflow_core.data.manifest import Account
from workflows.corpus import hashes
from workflows.corpus.accounts import closed, told, total
from workflows.corpus.cluster import cluster
from workflows.corpus.config import CorpusConfig
from workflows.corpus.documents import document_of
from workflows.corpus.ingested import QUARANTINE, UnitReport, UnitWriter, part_of, stored
from workflows.corpus.parts import read_facts, wrote
from workflows.corpus.progress import Progress
from workflows.corpus.sources import Draft, Refused
from workflows.corpus.sources.protocol import head
from workflows.corpus.unit_tasks import Died, each
from workflows.corpus.units import Unit, list_units, opened
from workflows.errors import OneFlowError
from workflows.storage import join

__all__ = [
    "QUARANTINE",
    "IngestReport",
    "UnitReport",
    "accounts",
    "ingest_unit",
    "reports",
    "run",
]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What ingest did. `made` of the units were ingested now, the others had been before, with `reused` documents."""

    units: tuple[UnitReport, ...]
    made: int
    reused: int
    seconds: float


def run(config: CorpusConfig) -> IngestReport:
    """Ingest every unit that has no part yet.

    Raises:
        OneFlowError: a source with no input, or of which nothing could be kept; storage that fails; an account that
            does not close.
    """
    begin = time.monotonic()
    units = list_units(config)
    present = stored(config)
    missing = [unit for unit in units if (unit.source, part_of(config, unit)) not in present]
    if len(missing) < len(units):
        _tell(f"{len(units) - len(missing):,} of {len(units):,} files reused")
    if missing:
        with cluster():
            ingest_units(config, missing)
        for unit in missing:
            wrote(join(config.root, "documents", unit.source), [part_of(config, unit)])
    found = reports(config, units)
    _hash(config, found)
    for source, account in accounts(found).items():
        if account.kept == 0:
            raise _nothing(config, source, account, found)
    new = {id(unit) for unit in missing}
    reused = sum(report.account.kept for report in found if id(report.unit) not in new)
    return IngestReport(tuple(found), len(missing), reused, time.monotonic() - begin)


def reports(config: CorpusConfig, units: Sequence[Unit]) -> list[UnitReport]:
    """What the parts of `units` say of themselves, in order.

    Raises:
        OneFlowError: a unit that was not ingested, an account that does not close.
    """
    present = stored(config)
    names = [(unit.source, part_of(config, unit)) for unit in units]
    absent = [unit for unit, name in zip(units, names, strict=True) if name not in present]
    if absent:
        raise OneFlowError(
            absent[0].main, "it was not ingested", "run oneflow corpus build with --stage ingest"
        )
    urls = [present[name][1] for name in names]
    return [
        UnitReport.of_facts(unit, url, facts)
        for unit, url, facts in zip(units, urls, read_facts(urls), strict=True)
    ]


def accounts(units: Sequence[UnitReport]) -> dict[str, Account]:
    """By source: what was read, kept and refused.

    Raises:
        OneFlowError: one does not close.
    """
    sources: dict[str, list[Account]] = {}
    for report in units:
        sources.setdefault(report.unit.source, []).append(report.account)
    return {source: closed(f"source {source}", total(found)) for source, found in sources.items()}


def ingest_units(
    config: CorpusConfig, units: Sequence[Unit], attempts: Mapping[Unit, int] | None = None
) -> Account:
    """Ingest `units` on Ray, which is up; a unit over which workers die is refused as a whole.

    `attempts` are the numbers of the retries, where they were ingested before.
    """
    progress, begin = Progress("ingest", len(units), "files"), time.monotonic()
    account = Account(0, 0)
    work = _Ingest(config, attempts or {})
    for unit, found in each(units, work):
        done = work.give_up(unit, found.cause) if isinstance(found, Died) else found
        account = total([account, done])
        progress.add(1)
    rate = account.read / max(time.monotonic() - begin, 1e-9)
    refused = f"{account.read - account.kept:,} refused ({told(account.refused)})"
    progress.finish(f"{account.read:,} documents, {rate:,.0f}/s; {account.kept:,} kept, {refused}")
    return account


def ingest_unit(config: CorpusConfig, unit: Unit, attempt: int = 0) -> Account:
    """Write the unit's part of documents, after its part of refusals if there are any; the first is the commit."""
    read = 0
    with opened(config, unit) as rows, UnitWriter(config, unit, attempt) as writer:
        for row in rows:
            read += 1
            _put(config, unit, row, writer)
            if rows.limit is not None and writer.kept >= rows.limit:
                break
        return writer.commit(read, rows.sha256())


def refuse_unit(config: CorpusConfig, unit: Unit, reason: str, cause: str, attempt: int = 0) -> Account:
    """Write down that nothing of the unit can be read, so that it is not tried again by each build."""
    with opened(config, unit) as rows, UnitWriter(config, unit, attempt) as writer:
        writer.refuse(Refused(unit.name, reason, head(cause)))
        return writer.commit(1, rows.sha256())


@dataclass(frozen=True, slots=True)
class _Ingest:
    """What a task does."""

    config: CorpusConfig
    attempts: Mapping[Unit, int]

    def __call__(self, unit: Unit) -> Account:
        return ingest_unit(self.config, unit, self.attempts.get(unit, 0))

    def give_up(self, unit: Unit, cause: str) -> Account:
        return refuse_unit(self.config, unit, "worker died", cause, self.attempts.get(unit, 0))


def _put(config: CorpusConfig, unit: Unit, row: Draft | Refused, writer: UnitWriter) -> None:
    if isinstance(row, Draft):
        writer.note_columns(list(map(str, row.columns)))
        try:
            checked = document_of(row, unit, config)
        except Exception as error:  # noqa: BLE001 a row that the checks were not made for
            checked = Refused(row.key, f"check failed: {type(error).__name__}", head(str(error)))
        if not isinstance(checked, Refused):
            writer.keep(checked.document, checked.cleaned)
            return
        row = checked
    writer.refuse(row)


def _hash(config: CorpusConfig, units: Sequence[UnitReport]) -> None:
    """Where near duplicates are looked for: hash the images of every unit that has no part of hashes yet."""
    if config.duplicates.near == "off":
        return
    present = hashes.present(config)
    missing = {u.unit: u.url for u in units if hashes.hashes_of(u.url) not in present}
    if not missing:
        return
    with cluster():
        progress, count = Progress("hash", len(missing), "files"), 0
        for unit, found in each(list(missing), _Hash(config, missing)):
            if isinstance(found, Died):
                mend = "take its file out of the source, or set duplicates.near to off"
                raise OneFlowError(unit.main, f"workers die over its images ({found.cause})", mend)
            count += found
            progress.add(1)
        progress.finish(f"{count:,} images hashed")


@dataclass(frozen=True, slots=True)
class _Hash:
    """What a task does."""

    config: CorpusConfig
    documents: Mapping[Unit, str]

    def __call__(self, unit: Unit) -> int:
        return hashes.hash_unit(self.config, unit, self.documents[unit])


def _nothing(
    config: CorpusConfig, source: str, account: Account, units: Sequence[UnitReport]
) -> OneFlowError:
    columns = next((u.columns for u in units if u.unit.source == source and u.columns), ())
    missing = next((r for r in account.refused if r.startswith("filter: no column ")), None)
    cause = f"none of its {account.read} rows could be kept {dict(account.refused) or ''}"
    if missing is not None and set(account.refused) == {missing}:
        name = missing.removeprefix("filter: no column ")
        cause = f"its filters name the column {name}, which none of its {account.read} rows has"
    mend = f"mend the source or its config; what was refused is in {join(config.root, 'quarantine/ingest')}"
    return OneFlowError(
        f"source {source}", cause, f"{mend}; columns: {', '.join(columns)}" if columns else mend
    )


def _tell(text: str) -> None:
    print(f"ingest: {text}", file=sys.stderr, flush=True)
