"""`oneflow bench`: run one benchmark by name."""

from importlib import import_module
from typing import Annotated

import typer

from workflows.errors import UsageError
from workflows.output import AsJson, print_json

BENCHMARKS = {
    "storage": "workflows.bench.storage:run",
}
"""Name -> "module:function" that measures and gives a Result."""


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    runs: Annotated[int, typer.Option(help="Repetitions; the median is told.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure something of ours and a peer on this machine."""
    if name not in BENCHMARKS:
        raise UsageError(f'benchmark "{name}"', "there is no such one", f"known: {', '.join(BENCHMARKS)}")
    module, function = BENCHMARKS[name].split(":")
    result = getattr(import_module(module), function)(runs)
    for key, value in result.summary().items():
        typer.echo(f"{key:<10} {value}")
    if as_json:
        print_json(result.to_json())
