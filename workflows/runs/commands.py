"""`oneflow runs`."""

import json
from typing import Annotated

import typer

from workflows.errors import UsageError
from workflows.output import AsJson, print_json

runs_app = typer.Typer(help="Training runs: list, show, compare.", no_args_is_help=True)
RUN = "An MLflow run id or its beginning, a run's name (the newest counts), or a run key."


@runs_app.command("list")
def list_runs(
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this experiment alone. [default: all]")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs shown, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest runs: name, experiment, state, step, held-out loss, and what each changed."""
    from workflows.runs.finding import experiments, newest
    from workflows.runs.overview import HEAD, cells, charts_url, row
    from workflows.runs.table import listed
    from workflows.tracking_server import tracking_server

    with tracking_server("the runs", "check the tracking server") as client:
        names = experiments(client, experiment)
        rows = [row(run, names) for run in newest(client, list(names), most=limit)]
    for line in listed([HEAD, *(cells(found) for found in rows)]) if rows else ["no runs yet"]:
        typer.echo(line)
    shown = {found["experiment"] for found in rows}
    charts = {name: charts_url(number) for number, name in names.items() if name in shown}
    for name, url in charts.items():
        if url:
            typer.echo(f"charts of {name}: {url}")
    if as_json:
        print_json({"runs": rows, "charts": charts})


@runs_app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN)],
    config: Annotated[
        bool, typer.Option("--config", help="Print its config as YAML, corpora at their versions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a run was made from, where it stands and what came of it."""
    from workflows.runs.finding import MEND, find
    from workflows.runs.record import record_of
    from workflows.runs.table import shown
    from workflows.tracking_server import tracking_server

    with tracking_server(f"run {run}", MEND) as client:
        found = find(client, run)
        if config:
            from workflows.runs.record import pinned_config

            typer.echo(pinned_config(client, found), nl=False)
            return
        record = record_of(client, found)
    for line in shown(record):
        typer.echo(line)
    if as_json:
        print_json(record.to_json())


@runs_app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help=f"Two or more. {RUN}")],
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Write index.html, with the curves, and comparison.json there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What differs between runs in config, data, code, environment and results; the first is the measure."""
    from workflows.runs.comparison import compare as lay_out
    from workflows.runs.finding import MEND, find
    from workflows.runs.page import FIGURES, PAGE, render
    from workflows.runs.record import record_of
    from workflows.runs.table import compared
    from workflows.storage import join, put_atomic
    from workflows.tracking_server import tracking_server

    if len(runs) < 2:
        raise UsageError(
            f"runs compare {' '.join(runs)}", "one run has nothing to differ from", "name two or more"
        )
    with tracking_server(f"runs {', '.join(runs)}", MEND) as client:
        found = {run.info.run_id: run for run in (find(client, said) for said in runs)}
        if len(found) < 2:
            raise UsageError(f"runs {', '.join(runs)}", "they are one and the same", "name two or more")
        comparison = lay_out([record_of(client, run) for run in found.values()])
    for line in compared(comparison):
        typer.echo(line)
    page = None
    if out is not None:
        page = join(out, PAGE)
        put_atomic(join(out, FIGURES), (json.dumps(comparison.to_json(), indent=2) + "\n").encode())
        put_atomic(page, render(comparison).encode())
        typer.echo(f"\npage: {page}")
    if as_json:
        print_json(comparison.to_json() | {"page": page})
