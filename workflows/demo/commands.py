"""`oneflow demo`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.output import AsJson, print_json

if TYPE_CHECKING:
    from workflows.demo.line import DemoReport


def demo(
    config: Annotated[str, typer.Argument(help="Preset or YAML file of kind demo.")] = "shapes",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")
    ] = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="Keep a training that has ended.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="Where the stack's state lies, as for oneflow stack.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole line: stack, corpus, training, registry, evaluation, gate, and a report of it.

    Again, it reuses the corpus and trains anew. The stack stays up.
    """
    from workflows.config import load
    from workflows.demo.line import run

    report = run(
        load("demo", config, overrides or []),
        reuse=reuse,
        state_dir=state_dir,
        say=_say,
        command=shlex.join(["oneflow", *sys.argv[1:]]),
    )
    _show(report, state_dir)
    if as_json:
        print_json({"report": str(report.page), "model": report.model, "promoted": report.promoted})


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _show(report: "DemoReport", state_dir: Path | None) -> None:
    oneflow = _program()
    gate = "holds" if report.promoted else "does not hold"
    where = f" --state-dir {state_dir}" if state_dir else ""
    lines = [
        "",
        report.ledger.table(),
        f"  peak memory of all processes: {report.peak_memory_bytes / 2**30:.1f} GiB",
        "",
        f"gate:      {gate}: {report.why}",
        f"report:    {report.page}",
        f"MLflow:    {report.mlflow_url} (run {report.run_id})",
        f'generate:  {oneflow} generate {report.model} --prompt "a large red circle"',
        f"serve:     {oneflow} serve {report.model}",
        f"stop:      {oneflow} stack down{where}",
    ]
    typer.echo("\n".join(lines))


def _program() -> str:
    """How this program is called from here."""
    path = Path(sys.argv[0]).absolute()
    shown = os.path.relpath(path)
    return shown if path.name == "oneflow" and not shown.startswith("..") else "oneflow"
