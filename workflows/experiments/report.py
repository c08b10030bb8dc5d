"""What a sweep found: a row a trial, the best of them, and a page with the metric against each key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workflows.experiments.chart import scatter
from workflows.experiments.config import ExperimentConfig
from workflows.experiments.trials import State, Trial, score
from workflows.templates import templates
from workflows.tracking import find_run
from workflows.training.worker import tracking_uri


@dataclass(frozen=True, slots=True)
class Row:
    """A trial and how far it came; `score` is of its last held-out metrics."""

    number: int
    values: Mapping[str, Any]
    state: State
    step: int
    score: float | None
    run_key: str
    run_id: str | None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """All trials by number, the best of those that came to their end, and where the page lies."""

    name: str
    key: str
    run_id: str | None
    terms: Mapping[str, float]
    mode: str
    rows: Sequence[Row]
    best: Row | None
    page: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def compose(
    config: ExperimentConfig,
    trials: Sequence[Trial],
    key: str,
    run_id: str | None,
    url: str,
    failures: Mapping[int, str],
) -> SweepReport:
    """The report as storage has it now; `failures` are why trials failed, by number."""
    rows = [_row(trial, config.terms, failures.get(trial.number)) for trial in trials]
    over = [row for row in rows if row.state == "finished" and row.score is not None]
    sign = 1 if config.mode == "min" else -1
    best = min(over, key=lambda row: sign * (row.score or 0.0), default=None)
    return SweepReport(config.name, key, run_id, config.terms, config.mode, rows, best, url)


def table(report: SweepReport) -> list[str]:
    """Lines for a terminal: the best first, what has no score last."""
    sign = 1 if report.mode == "min" else -1
    rows = sorted(report.rows, key=lambda r: (r.score is None, sign * (r.score or 0.0)))
    keys = list(report.rows[0].values)
    cells = [["trial", *keys, "state", "step", "score"]]
    cells += [
        [str(r.number), *(_short(r.values[k]) for k in keys), r.state, str(r.step), _short(r.score)]
        for r in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def page(config: ExperimentConfig, report: SweepReport) -> str:
    """The page: one file that needs no other."""
    shown = [row for row in report.rows if row.score is not None]
    charts = [
        scatter(key, _metric(report.terms), [(row.values[key], row.score or 0.0, row.state) for row in shown])
        for key in config.space
    ]
    template = templates(Path(__file__).parent).get_template("page.html")
    return template.render(
        report=report, charts=charts, metric=_metric(report.terms), keys=list(config.space), short=_short
    )


def _row(trial: Trial, terms: Mapping[str, float], failure: str | None) -> Row:
    held, state, settings = trial.progress, trial.state, trial.config.tracking
    uri = tracking_uri(trial.config)
    run_id = find_run(uri, settings.experiment, trial.run_key) if uri else None
    step = trial.stopped_at if state == "stopped" else int(held.get("step", 0))
    value = score(held.get("metrics", {}), terms)
    told: State = "failed" if failure else state
    return Row(trial.number, trial.values, told, step, value, trial.run_key, run_id, failure)


def _metric(terms: Mapping[str, float]) -> str:
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms.items())


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
