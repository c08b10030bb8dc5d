"""`oneflow evaluate`."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.output import AsJson, print_json

if TYPE_CHECKING:
    from workflows.evaluation.report import EvaluationReport

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value of the config.")
]


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory, an fsspec URL, or models:/NAME@ALIAS.")
    ],
    suite: Annotated[str, typer.Option(help="Preset or YAML file of what is asked.")] = "shapes",
    url: Annotated[
        str | None, typer.Option(help="A deployment that serves MODEL; without it one is started.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for items, pictures and figures.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|@ALIAS|RUN|DIR",
            help="Compare with another model, a paired test on the same items: a model, the alias of a version of "
            "the same one, an MLflow run that evaluated them, or what --out wrote.",
        ),
    ] = None,
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="Judge, and move the alias.")] = True,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score a model over its served interface, log the figures, and let the gate decide (exit 3: refused).

    The same command again after Ctrl-C (exit 130) or a crash asks only what is missing.
    """
    from workflows.config import load
    from workflows.errors import Refused
    from workflows.evaluation.config import EvaluateConfig
    from workflows.evaluation.run import run

    config: EvaluateConfig = load("evaluate", suite, overrides or [])
    if not gate:
        config = config.model_copy(update={"gate": None})
    with _stoppable():
        report = run(
            config, model, url=url, out=out, against=against, say=lambda line: typer.echo(line, err=True)
        )
    for line in _lines(report):
        typer.echo(line)
    for note in report.judged.notes:
        typer.echo(f"note: {note}", err=True)
    if report.failed:
        typer.echo(
            f"{report.failed} of {len(report.judged.items)} items failed and count as wrong; "
            "the same command again asks for these alone",
            err=True,
        )
    if report.verdict:
        typer.echo(f"gate: {'passed' if report.verdict.passed else 'refused'}: {report.verdict.why}")
    if as_json:
        print_json(report.to_json())
    if report.verdict and not report.verdict.passed:
        raise Refused(f"model {model}", report.verdict.why, "train longer, or change the gate's thresholds")


def _lines(report: "EvaluationReport") -> Iterator[str]:
    """Figures with intervals and controls, and the comparison."""
    for name, figure in report.figures.items():
        controls = ", ".join(f"{key} {value:.3f}" for key, value in figure.controls.items())
        found = figure.estimate
        interval = f"[{found.low:.3f}, {found.high:.3f}]"
        yield f"{name:44} {found.value:6.3f}  {interval}  n={found.count:<4} {controls}"
    if report.comparison is not None:
        yield from report.comparison.lines()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the evaluation as Ctrl-C does: what is under way is kept, what was started is stopped, exit 130."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; the same command again asks only what is missing", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
