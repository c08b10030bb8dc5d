"""`oneflow stack`: the embedded services of this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.output import AsJson, print_json

if TYPE_CHECKING:
    from workflows.stack.lifecycle import Status

stack_app = typer.Typer(help="Start, look at and stop the embedded S3, MLflow and Ray.", no_args_is_help=True)

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Where state lies: else $ONEFLOW_HOME/stack, or .oneflow/stack here."),
]


@stack_app.command()
def up(
    config: Annotated[str, typer.Option(help="A preset's name or a file.")] = "local",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Start what does not run yet, and wait until it is ready."""
    from workflows.config import load
    from workflows.stack import lifecycle

    status = lifecycle.up(
        load("stack", config, overrides or []), state_dir, lambda line: typer.echo(line, err=True)
    )
    _show(status, as_json)


@stack_app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove data and logs too.")] = False,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Stop all of it; data and logs stay."""
    from workflows.stack import lifecycle

    stopped = lifecycle.down(state_dir, purge=purge)
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing ran")
    if as_json:
        print_json({"stopped": stopped})


@stack_app.command()
def status(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Say what runs, where it answers and where its logs are."""
    from workflows.stack import lifecycle

    _show(lifecycle.status(state_dir), as_json)


@stack_app.command()
def env(state_dir: StateDir = None) -> None:
    """Print export lines, secrets among them: eval "$(oneflow stack env)"."""
    from workflows.stack.environment import exports

    typer.echo(exports(state_dir), nl=False)


def _show(status: "Status", as_json: bool) -> None:
    shown = status.model_dump(mode="json")
    if as_json:
        return print_json(shown)
    for name, service in shown.pop("services").items():
        typer.echo(f"{name:<14} {service['state']:<9} pid {service['pid'] or '-'}  log {service['log']}")
    for name, value in shown.items():
        typer.echo(f"{name:<14} {value if value is not None else '-'}")
