"""The command `oneflow`: assembles the commands of the packages and turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage or bad config, 3 refused by a gate or a verification.
"""

import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from workflows.bench.commands import bench
from workflows.config_commands import config_app
from workflows.corpus.commands import corpus_app
from workflows.demo.commands import demo
from workflows.encoders.commands import encoders_app
from workflows.errors import OneFlowError
from workflows.evaluation.commands import evaluate
from workflows.experiments.commands import experiment_app
from workflows.runs.commands import runs_app
from workflows.serving.commands import generate, serve
from workflows.stack.commands import stack_app
from workflows.submit.commands import submit
from workflows.training.commands import models_app, train

app = typer.Typer(
    name="oneflow",
    help="OneFlow: corpus, training, evaluation and serving of one model for text and images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(config_app, name="config")
app.add_typer(stack_app, name="stack")
app.add_typer(corpus_app, name="corpus")
app.command()(train)
app.add_typer(models_app, name="models")
app.add_typer(runs_app, name="runs")
app.add_typer(experiment_app, name="experiment")
app.command()(evaluate)
app.command()(submit)
app.command()(bench)
app.command()(serve)
app.command()(generate)
app.command()(demo)
app.add_typer(encoders_app, name="encoders")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"oneflow {installed_version('oneflow')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand != "stack":
        from workflows.stack.environment import adopt

        adopt()


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; errors are one paragraph on stderr, a traceback only with --debug."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        app([*(["--debug"] if debug else []), *(a for a in given if a != "--debug")], prog_name="oneflow")
    except OneFlowError as error:
        if debug:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
