"""`oneflow bench`: run one benchmark by name."""

import signal
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from workflows.errors import UsageError
from workflows.output import AsJson, print_json

BENCHMARKS = {
    "train-step": "workflows.bench.train_step:run",
    "sample": "workflows.bench.sample:run",
    "mfu": "workflows.bench.mfu:run",
    "tracking": "workflows.bench.tracking:run",
    "plan": "workflows.bench.plan_check:run",
    "packing": "workflows.bench.packing:run",
    "vocab-loss": "workflows.bench.vocab_loss:run",
    "trunk": "workflows.bench.trunk:run",
    "targets": "workflows.bench.targets:run",
    "peer-transfusion": "workflows.bench.peer_transfusion:run",
    "checkpoint": "workflows.bench.checkpoint:run",
    "storage": "workflows.bench.storage:run",
    "faults": "workflows.bench.faults:run",
    "train-faults": "workflows.bench.train_faults:run",
    "encode": "workflows.bench.encode:run",
    "encode-device": "workflows.bench.encode_device:run",
    "rebuild": "workflows.bench.rebuild:run",
    "loader": "workflows.bench.loader:run",
    "resume": "workflows.bench.resume:run",
    "scale": "workflows.bench.scale:run",
    "train-loop": "workflows.bench.train_loop:run",
    "evaluate": "workflows.bench.evaluate:run",
    "soak": "workflows.bench.soak:run",
    "serve": "workflows.bench.serve:run",
    "garbage": "workflows.bench.garbage:run",
}
"""Name -> "module:function" that measures and gives a Result."""
ON_A_DEVICE = (
    "train-step",
    "sample",
    "mfu",
    "plan",
    "vocab-loss",
    "peer-transfusion",
    "encode",
    "encode-device",
    "checkpoint",
    "train-loop",
    "evaluate",
    "serve",
)
"""Those that can measure a GPU."""
WITH_VICTIMS = ("faults", "train-faults")
"""Those that kill; `--only` and `--seed` are theirs."""
RUNS = {"faults": 20, "evaluate": 3, "serve": 1, "soak": 30, "garbage": 10_000}
"""Where the default is not 5."""


ENDING = (signal.SIGINT, signal.SIGTERM)


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    runs: Annotated[
        int | None,
        typer.Option(
            help="Repetitions; the median is told. [default: 5; evaluate: 3; serve: 1 of 17 minutes; "
            "faults: 20 kills of each kind; soak: 30 minutes; garbage: 10,000 requests]",
            min=1,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=f"cpu, or cuda for {', '.join(ON_A_DEVICE)}.")] = "cpu",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VICTIM[/STAGE]",
            help="Of faults: driver, worker, store, proxy; or driver/shard. Of train-faults: worker, store, "
            "mlflow, driver, sigterm, node.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of faults and train-faults: another seed kills at other moments.", min=0)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure something of ours and a peer on this machine."""
    if name not in BENCHMARKS:
        raise UsageError(f'benchmark "{name}"', "there is no such one", f"known: {', '.join(BENCHMARKS)}")
    module, function = BENCHMARKS[name].split(":")
    if device != "cpu" and name not in ON_A_DEVICE:
        raise UsageError(f"--device {device}", f"{name} measures the CPU alone", "leave it out")
    options: dict[str, Any] = {"device": device} if name in ON_A_DEVICE else {}
    if name in WITH_VICTIMS:
        options = {"only": only or (), "seed": seed}
    elif only:
        raise UsageError(f"--only {only[0]}", f"{name} has no parts", "leave it out")
    for number in ENDING:
        signal.signal(number, _end)
    result = getattr(import_module(module), function)(runs or RUNS.get(name, 5), **options)
    for key, value in result.summary().items():
        typer.echo(f"{key:<22} {value}")
    if as_json:
        print_json(result.to_json())


def _end(number: int, _: object) -> None:
    """Ends the benchmark and, with it, the servers that it started; further signals do not keep it from that."""
    for each in ENDING:
        signal.signal(each, lambda *_: None)
    sys.exit(128 + number)
