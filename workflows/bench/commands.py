"""`oneflow bench`: run one benchmark by name."""

from importlib import import_module
from typing import Annotated

import typer

from workflows.errors import UsageError
from workflows.output import AsJson, print_json

BENCHMARKS = {
    "train-step": "workflows.bench.train_step:run",
    "sample": "workflows.bench.sample:run",
    "mfu": "workflows.bench.mfu:run",
    "packing": "workflows.bench.packing:run",
    "vocab-loss": "workflows.bench.vocab_loss:run",
    "targets": "workflows.bench.targets:run",
    "peer-transfusion": "workflows.bench.peer_transfusion:run",
    "storage": "workflows.bench.storage:run",
    "encode": "workflows.bench.encode:run",
    "rebuild": "workflows.bench.rebuild:run",
    "loader": "workflows.bench.loader:run",
    "resume": "workflows.bench.resume:run",
    "scale": "workflows.bench.scale:run",
}
"""Name -> "module:function" that measures and gives a Result."""
ON_A_DEVICE = ("train-step", "sample", "mfu", "vocab-loss", "peer-transfusion", "encode")
"""Those that can measure a GPU."""


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    runs: Annotated[int, typer.Option(help="Repetitions; the median is told.", min=1)] = 5,
    device: Annotated[str, typer.Option(help=f"cpu, or cuda for {', '.join(ON_A_DEVICE)}.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure something of ours and a peer on this machine."""
    if name not in BENCHMARKS:
        raise UsageError(f'benchmark "{name}"', "there is no such one", f"known: {', '.join(BENCHMARKS)}")
    module, function = BENCHMARKS[name].split(":")
    if device != "cpu" and name not in ON_A_DEVICE:
        raise UsageError(f"--device {device}", f"{name} measures the CPU alone", "leave it out")
    where = {"device": device} if name in ON_A_DEVICE else {}
    result = getattr(import_module(module), function)(runs, **where)
    for key, value in result.summary().items():
        typer.echo(f"{key:<22} {value}")
    if as_json:
        print_json(result.to_json())
