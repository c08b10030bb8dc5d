"""A comparison, and a run, as text for a terminal."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workflows.runs.comparison import Comparison, diff_commands
from workflows.runs.record import Corpus, Record

WIDEST = 34
"""Characters of a cell; what is longer loses its middle."""
PLACES = {"step": "step {:,.0f}", "tokens": "{:,.0f} tokens", "seconds": "{:,.0f} s of training"}
COUNTS = {"samples": "documents", "images": "images", "text_bytes": "bytes of text", "bytes": "bytes"}


def compared(comparison: Comparison) -> Iterator[str]:
    """Lines: who is compared, then a table for each of config, data, code, environment and results."""
    records = comparison.records
    yield from table("run", {"": [r.name for r in records], **_about(records)})
    for warning in comparison.warnings:
        yield f"note: {warning}"
    yield from table("config", comparison.config) or _none("config")
    yield from table("data", data_rows(comparison.data)) or _none("data")
    yield from (f"  {command}" for command in diff_commands(comparison))
    code = dict(comparison.code)
    if len(set(comparison.commits)) > 1:
        code["commits since the first"] = ["" if n is None else str(n) for n in comparison.commits]
    yield from table("code", code) or _none("code")
    yield from table("environment", comparison.environment) or _none("environment")
    yield from table("results", comparison.results)
    for axis, (place, values) in comparison.equal.items():
        if values:
            yield from table(f"held-out losses at {PLACES[axis].format(place)}", values)
    if comparison.evaluations:
        yield from table("evaluation", comparison.evaluations)


def shown(record: Record) -> Iterator[str]:
    """Lines about one run."""
    facts = {
        "run": f"{record.name} ({record.id})",
        "experiment": record.experiment,
        "status": f"{record.status}, attempt {record.attempts}, step {record.step}",
        "key": record.key,
        "commit": record.commit,
        "lock": record.lock[:12],
        "machine": ", ".join(f"{k} {v}" for k, v in record.environment.items() if v),
        "changed": record.tags.get("oneflow.changed", ""),
    }
    facts |= {f"corpus {c.ref.name}": f"{c.ref.version} {c.ref.url}" for c in record.corpora}
    facts |= {"versions": ", ".join(f"models:/{version}" for version in record.versions)}
    yield from (f"{name:<16}{value}" for name, value in facts.items() if value)
    yield from table("metrics", {name: [value] for name, value in sorted(record.metrics.items())})


def listed(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def table(title: str, rows: Mapping[str, Sequence[Any]]) -> list[str]:
    """A title and a line a row, one column a run; nothing where there are no rows."""
    if not rows:
        return []
    cells = [[f"  {name}", *(short(value) for value in values)] for name, values in rows.items()]
    return ["", title, *listed(cells)]


def short(value: Any, widest: int = WIDEST) -> str:
    """A value in few characters; a commit or a digest by its first 12."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    text = str(value)
    if digest := re.fullmatch(r"([0-9a-f]{12})[0-9a-f]{28,52}(\+changes)?", text):
        return f"{digest[1]}{digest[2] or ''}"
    half = widest // 2 - 1
    return text if len(text) <= widest else f"{text[:half]}…{text[-half:]}"


def counts(corpus: Corpus | None) -> dict[str, int]:
    """What of a corpus is counted."""
    return {words: corpus.totals[name] for name, words in COUNTS.items() if corpus and name in corpus.totals}


def _about(records: Sequence[Record]) -> dict[str, list[str]]:
    return {
        "id": [r.id[:12] for r in records],
        "experiment": [r.experiment for r in records],
        "status": [f"{r.status}, attempt {r.attempts}" for r in records],
        "versions": [", ".join(r.versions) or "none" for r in records],
    }


def data_rows(data: Mapping[str, Sequence[Corpus | None]]) -> dict[str, list[str]]:
    """Versions of the corpora that differ, and under each the counts that do."""
    rows: dict[str, list[str]] = {}
    for name, corpora in data.items():
        rows[name] = [corpus.ref.version if corpus else "-" for corpus in corpora]
        for words in COUNTS.values():
            found = [counts(corpus).get(words) for corpus in corpora]
            if len(set(found)) > 1:
                rows[f"  {words}"] = ["-" if count is None else f"{count:,}" for count in found]
    return rows


def _none(title: str) -> list[str]:
    return ["", f"{title}: the same"]
