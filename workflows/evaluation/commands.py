"""`oneflow evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from workflows.output import AsJson, print_json

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
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="Judge, and move the alias.")] = True,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score a model over its served interface, log the figures, and let the gate decide (exit 3: refused)."""
    from workflows.config import load
    from workflows.errors import Refused
    from workflows.evaluation.config import EvaluateConfig
    from workflows.evaluation.run import run

    config: EvaluateConfig = load("evaluate", suite, overrides or [])
    if not gate:
        config = config.model_copy(update={"gate": None})
    report = run(config, model, url=url, out=out, say=lambda line: typer.echo(line, err=True))
    for name, figure in report.figures.items():
        controls = ", ".join(f"{key} {value:.3f}" for key, value in figure.controls.items())
        found = figure.estimate
        interval = f"[{found.low:.3f}, {found.high:.3f}]"
        typer.echo(f"{name:44} {found.value:6.3f}  {interval}  n={found.count:<4} {controls}")
    if report.failed:
        typer.echo(
            f"{report.failed} of {len(report.judged.items)} items failed; they count as wrong", err=True
        )
    if report.verdict:
        typer.echo(f"gate: {'passed' if report.verdict.passed else 'refused'}: {report.verdict.why}")
    if as_json:
        print_json(report.to_json())
    if report.verdict and not report.verdict.passed:
        raise Refused(f"model {model}", report.verdict.why, "train longer, or change the gate's thresholds")
