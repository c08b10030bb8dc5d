"""What differs between runs: config, data, code, environment, results. Nothing here asks a server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.revision import DIRTY, commits_between
from workflows.runs.curves import AXES, Axis
from workflows.runs.record import ENVIRONMENT, FIRST, Corpus, Record, corpus_json

UNTOLD = ("name",)
"""Keys of a config that say nothing of what was trained."""
MEASURE = (
    "objective.",
    "data.holdout",
    "data.tokens",
    "data.lanes",
    "data.heldout_packs",
    "data.tokenizer",
    "seed",
)
"""Keys that decide what a held-out loss is: where one differs, the losses do not compare."""
GOODPUT = "goodput"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs beside each other; every list has one entry a run, in their order."""

    records: tuple[Record, ...]
    config: Mapping[str, list[Any]]
    """Dotted keys that differ; None where a run has no such key."""
    data: Mapping[str, list[Corpus | None]]
    """Name of a corpus that differs."""
    code: Mapping[str, list[str]]
    commits: tuple[int | None, ...]
    """Commits from the first run's code to each run's; None where this checkout does not know them."""
    environment: Mapping[str, list[str]]
    results: Mapping[str, list[float | None]]
    equal: Mapping[Axis, tuple[float, Mapping[str, list[float | None]]]]
    """By axis: the place that all runs reached, and their held-out losses there."""
    evaluations: Mapping[str, list[float | None]]
    """`suite: metric`, of every suite that one of the runs was asked."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        runs = [
            {"id": r.id, "name": r.name, "experiment": r.experiment, "key": r.key, "status": r.status,
             "attempts": r.attempts, "versions": list(r.versions)}
            for r in self.records
        ]  # fmt: skip
        data = {name: [c and corpus_json(c) for c in found] for name, found in self.data.items()}
        equal = {axis: {"at": place, "values": dict(values)} for axis, (place, values) in self.equal.items()}
        return {
            "runs": runs,
            "config": dict(self.config),
            "data": data,
            "diffs": diff_commands(self),
            "code": {**self.code, "commits": list(self.commits)},
            "environment": dict(self.environment),
            "results": dict(self.results),
            "equal": equal,
            "evaluations": dict(self.evaluations),
            "warnings": list(self.warnings),
        }


def compare(records: Sequence[Record]) -> Comparison:
    """Lay `records` beside each other; the first is what the others are compared with."""
    config = _config(records)
    data = _data(records)
    heldout = sorted({n for r in records for n in r.histories.points if n.startswith("heldout/")}, key=_first)
    return Comparison(
        records=tuple(records),
        config=config,
        data=data,
        code=_differing({"commit": [r.commit for r in records], "lock_sha256": [r.lock for r in records]}),
        commits=tuple(_commits(records[0], record) for record in records),
        environment=_differing({n: [r.environment[n] for r in records] for n in ENVIRONMENT}),
        results=_results(records, heldout),
        equal={axis: _equal(records, heldout, axis) for axis in AXES},
        evaluations=_evaluations(records),
        warnings=tuple(_warnings(records, config, data)),
    )


def diff_commands(comparison: Comparison) -> list[str]:
    """The commands that list, document by document, how two versions of a corpus differ."""
    found = []
    for corpora in comparison.data.values():
        held = {c.ref.version: c.ref.url for c in corpora if c}
        urls = list(held.values())
        found += [f"oneflow corpus diff {a} {b}" for a, b in zip(urls, urls[1:], strict=False)]
    return found


def _config(records: Sequence[Record]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for record in records for key in record.config if key not in UNTOLD)
    rows = {key: [record.config.get(key) for record in records] for key in keys}
    return {key: values for key, values in rows.items() if any(v != values[0] for v in values)}


def _data(records: Sequence[Record]) -> dict[str, list[Corpus | None]]:
    held = [{corpus.ref.name: corpus for corpus in record.corpora} for record in records]
    names = dict.fromkeys(name for corpora in held for name in corpora)
    rows = {name: [corpora.get(name) for corpora in held] for name in names}
    return {name: row for name, row in rows.items() if len({c and c.ref.version for c in row}) > 1}


def _differing(rows: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _commits(first: Record, other: Record) -> int | None:
    return commits_between(first.commit, other.commit) if first.commit and other.commit else None


def _first(name: str) -> tuple[bool, str]:
    return name != FIRST, name


def _results(records: Sequence[Record], heldout: Sequence[str]) -> dict[str, list[float | None]]:
    """The figures by which runs are judged, latest and best."""
    rows: dict[str, list[float | None]] = {
        "last step": [float(r.step) for r in records],
        "seconds trained": [r.histories.last("train/loss", "seconds") for r in records],
        "tokens/s": [r.histories.tokens_per_s for r in records],
    }
    goodputs = sorted({n for r in records for n in r.metrics if GOODPUT in n})
    for name in ["train/loss", *goodputs]:
        rows[name] = [r.metrics.get(name) for r in records]
    rows[f"best {FIRST}"] = [
        min((v for _, v in r.histories.points.get(FIRST, ())), default=None) for r in records
    ]
    for name in heldout:
        rows[f"final {name}"] = [r.metrics.get(name) for r in records]
    return {name: values for name, values in rows.items() if any(v is not None for v in values)}


def _equal(
    records: Sequence[Record], heldout: Sequence[str], axis: Axis
) -> tuple[float, dict[str, list[float | None]]]:
    """Held-out losses at the furthest place that all runs with such losses reached."""
    reached = [r.histories.last(FIRST, axis) for r in records if FIRST in r.histories.points]
    place = min(reached, default=0.0)
    values = {name: [r.histories.at(name, axis, place) for r in records] for name in heldout} if place else {}
    return place, values


def _evaluations(records: Sequence[Record]) -> dict[str, list[float | None]]:
    suites = dict.fromkeys(suite for record in records for suite in record.evaluations)
    rows = {}
    for suite in suites:
        found = [record.evaluations.get(suite, {}).get("metrics", {}) for record in records]
        for name in dict.fromkeys(name for metrics in found for name in metrics):
            rows[f"{suite}: {name}"] = [metrics.get(name) for metrics in found]
    return rows


def _warnings(records: Sequence[Record], config: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    """Why figures may not compare."""
    measure = [key for key in config if key.startswith(MEASURE)] + [f"corpus {name}" for name in data]
    if measure:
        more = f" and {len(measure) - 4} more" if len(measure) > 4 else ""
        yield f"held-out losses are of other tasks or documents: {', '.join(measure[:4])}{more} differ"
    for record in records:
        if record.commit.endswith(DIRTY):
            yield f"{record.name}: files differed from its commit {record.commit[:12]}"
        if record.status == "RUNNING":
            yield f"{record.name} is still running"
    digests = [{s: e.get("digest") for s, e in r.evaluations.items()} for r in records]
    for suite in dict.fromkeys(suite for held in digests for suite in held):
        if len({held[suite] for held in digests if suite in held}) > 1:
            yield f"evaluation {suite}: the runs were asked different items"
