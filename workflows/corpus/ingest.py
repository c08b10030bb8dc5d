"""Ingest: each input file becomes a part of documents, and a part of what was refused. One task a file.

The images stay in the source, which is read again when they are encoded; a document names them by SHA-256.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from oneflow_core.data.manifest import Account, Input
from oneflow_core.data.shard import document_bytes
from oneflow_core.document import Document
from workflows.corpus.cluster import Environment, cluster
from workflows.corpus.config import CorpusConfig
from workflows.corpus.documents import document_of
from workflows.corpus.parts import list_parts, read_facts, write_part, wrote
from workflows.corpus.progress import Progress
from workflows.corpus.sources import Refused
from workflows.corpus.units import Unit, list_units, opened
from workflows.errors import OneFlowError
from workflows.storage import join

DOCUMENTS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("document", pa.string()),
        ("images", pa.list_(pa.string())),
        ("text_bytes", pa.int64()),
    ]
)
QUARANTINE = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("head", pa.binary()),
    ]
)


@dataclass(frozen=True, slots=True)
class UnitReport:
    """A unit with its part and what the part's footer says of it."""

    unit: Unit
    url: str
    sha256: str
    account: Account
    images: int
    """Image segments in the part, an image that is used twice counted twice."""
    document_bytes: int
    """Bytes of the documents as JSON."""

    @property
    def input(self) -> Input:
        """The unit as a manifest names it."""
        return Input(
            self.unit.source, self.unit.name, self.unit.main, self.unit.size, self.unit.etag, self.sha256
        )


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What ingest did. `made` of the units were ingested now, the others had been before."""

    units: tuple[UnitReport, ...]
    made: int
    seconds: float


def run(config: CorpusConfig) -> IngestReport:
    """Ingest every unit that has no part yet.

    Raises:
        OneFlowError: a source with no input, or of which nothing could be kept; storage that fails.
    """
    begin = time.monotonic()
    units = list_units(config)
    present = _present(config)
    missing = [unit for unit in units if unit.part(config) not in present]
    if missing:
        with cluster():
            _ingest(config, missing)
        for unit in missing:
            wrote(join(config.root, "documents", unit.source), [unit.part(config)])
    report = IngestReport(tuple(reports(config, units)), len(missing), time.monotonic() - begin)
    for source, account in accounts(report.units).items():
        if account.kept == 0:
            raise OneFlowError(
                f"source {source}",
                f"none of its {account.read} rows could be kept {dict(account.refused) or ''}",
                f"mend the source or its config; what was refused is in {join(config.root, 'quarantine/ingest')}",
            )
    return report


def reports(config: CorpusConfig, units: Sequence[Unit]) -> list[UnitReport]:
    """What the parts of `units` say of themselves, in order.

    Raises:
        OneFlowError: a unit that was not ingested.
    """
    present = _present(config)
    absent = [unit for unit in units if unit.part(config) not in present]
    if absent:
        raise OneFlowError(
            absent[0].main, "it was not ingested", "run oneflow corpus build with --stage ingest"
        )
    urls = [present[unit.part(config)] for unit in units]
    return [_report(unit, url, facts) for unit, url, facts in zip(units, urls, read_facts(urls), strict=True)]


def accounts(units: Sequence[UnitReport]) -> dict[str, Account]:
    """By source: what was read, kept and refused."""
    sources: dict[str, list[Account]] = {}
    for report in units:
        sources.setdefault(report.unit.source, []).append(report.account)
    return {source: _sum(found) for source, found in sources.items()}


def ingest_unit(config: CorpusConfig, unit: Unit) -> Account:
    """Write the unit's part of documents, after its part of refusals if there are any; the first is the commit."""
    source = next(s for s in config.sources if s.name == unit.source)
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    with opened(config, unit) as drafts:
        for draft in drafts:
            found = draft if isinstance(draft, Refused) else document_of(draft, unit, config.limits)
            if isinstance(found, Refused):
                refused.append(found)
            else:
                rows.append(_row(found))
            if source.limit is not None and len(rows) >= source.limit:
                break
        sha256 = drafts.sha256()
    account = Account(len(rows) + len(refused), len(rows), Counter(r.reason for r in refused))
    part = unit.part(config) + ".parquet"
    if refused:
        write_part(quarantined(config, unit), _quarantine(unit, refused), {"unit": unit.main})
    facts = {"sha256": sha256, "read": account.read, "kept": account.kept, "refused": dict(account.refused)}
    facts |= {"images": sum(len(r["images"]) for r in rows)}
    facts |= {"document_bytes": sum(len(r["document"].encode()) for r in rows)}
    write_part(
        join(config.root, "documents", unit.source, part), pa.Table.from_pylist(rows, DOCUMENTS), facts
    )
    return account


def quarantined(config: CorpusConfig, unit: Unit) -> str:
    """URL of the part of what was refused of `unit`, if anything was."""
    name = unit.part(config).replace("part-", f"part-{unit.source}-")
    return join(config.root, "quarantine", "ingest", f"{name}.parquet")


def _ingest(config: CorpusConfig, units: Sequence[Unit]) -> None:
    import ray.data

    progress = Progress("ingest", len(units), "files")
    account = Account(0, 0)
    items = [{"unit": number} for number in range(len(units))]
    made = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Ingest(config, tuple(units), Environment.of_driver())
    )
    for row in made.iter_rows():
        account = _sum([account, Account(row["read"], row["kept"], {"refused": row["read"] - row["kept"]})])
        progress.add(1)
    progress.finish(f"{account.kept:,} documents kept, {account.read - account.kept:,} refused")


@dataclass(frozen=True)
class _Ingest:
    config: CorpusConfig
    units: tuple[Unit, ...]
    environment: Environment

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.environment.apply()
        account = ingest_unit(self.config, self.units[row["unit"]])
        return {"read": account.read, "kept": account.kept}


def _present(config: CorpusConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in config.sources:
        found |= list_parts(config.root, "documents", source.name)
    return found


def _report(unit: Unit, url: str, facts: Mapping[str, Any]) -> UnitReport:
    account = Account(facts["read"], facts["kept"], facts["refused"])
    return UnitReport(unit, url, facts["sha256"], account, facts["images"], facts["document_bytes"])


def _row(document: Document) -> dict[str, Any]:
    return {
        "doc_id": document.doc_id,
        "source": document.source,
        "licence": document.licence,
        "document": document_bytes(document).decode(),
        "images": [image.sha256 for image in document.images],
        "text_bytes": sum(len(text.text.encode()) for text in document.texts),
    }


def _quarantine(unit: Unit, refused: Sequence[Refused]) -> pa.Table:
    rows = [
        {"source": unit.source, "file": unit.main, "key": r.key, "reason": r.reason, "head": r.head}
        for r in refused
    ]
    return pa.Table.from_pylist(rows, QUARANTINE)


def _sum(accounts: Sequence[Account]) -> Account:
    refused: Counter[str] = Counter()
    for account in accounts:
        refused.update(account.refused)
    return Account(sum(a.read for a in accounts), sum(a.kept for a in accounts), dict(refused))
