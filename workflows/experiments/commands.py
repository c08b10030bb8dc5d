"""`oneflow experiment`."""

from typing import Annotated

import typer

from workflows.output import AsJson, print_json

experiment_app = typer.Typer(
    help="Sweeps: a training with some keys varied, as nested runs.", no_args_is_help=True
)


@experiment_app.callback()
def _group() -> None:
    """Keeps `run` a command of its own while there is no other."""


@experiment_app.command()
def run(
    name: Annotated[str, typer.Argument(help="Preset (lr-nano) or YAML file of kind experiment.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the trials of a sweep and tell which is best. The same command again goes on with what is not over."""
    from workflows.config import load
    from workflows.experiments.report import table
    from workflows.experiments.sweep import run as sweep

    report = sweep(load("experiment", name, overrides or []))
    for line in table(report):
        typer.echo(line)
    best = report.best
    if best:
        values = " ".join(f"--set {key}={value}" for key, value in best.values.items())
        typer.echo(f"best: trial {best.number}, score {best.score:.4f}: {values}")
    typer.echo(f"page: {report.page}")
    if as_json:
        print_json(report.to_json())
