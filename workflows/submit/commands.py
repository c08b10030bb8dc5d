"""`oneflow submit`: a stage on a cluster."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.errors import UsageError
from workflows.output import AsJson, print_json

if TYPE_CHECKING:
    from workflows.submit.config import JobConfig


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB-CONFIG", help="A preset of kind job, or a YAML file.")],
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="A Ray job server; else that of the stack.")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Print the KubeRay manifest instead.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the log and end as the job ends.")] = True,
    python: Annotated[str | None, typer.Option(help="The Python that runs it there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a stage on a Ray job server (--address), or print what KubeRay runs (--render)."""
    from workflows.config import load
    from workflows.submit.manifest import render as to_yaml

    config: JobConfig = load("job", job, overrides or [])
    if render:
        return typer.echo(to_yaml(config), nl=False)
    server = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not server:
        raise UsageError(
            "submit", "neither --address nor --render was given", "oneflow stack up brings a job server"
        )
    _run(config, server, wait, python, as_json)


def _run(config: "JobConfig", server: str, wait: bool, python: str | None, as_json: bool) -> None:
    from workflows.submit import jobserver

    report = jobserver.submit(config, server, python)
    typer.echo(f"{report.name}: submitted as {report.submission_id}", err=True)
    if wait:
        report = jobserver.follow(report, sys.stdout.write)
        typer.echo(f"{report.name}: {report.status.lower()}", err=True)
    if as_json:
        print_json(report.model_dump(mode="json"))
    if wait:
        raise typer.Exit(jobserver.exit_code(report))
