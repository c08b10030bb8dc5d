"""`oneflow train` and `oneflow models`."""

from pathlib import Path
from typing import Annotated

import typer

from workflows.errors import OneFlowError
from workflows.output import AsJson, print_json

models_app = typer.Typer(
    help="Registered models: list, promote, follow back to what they came from.", no_args_is_help=True
)


def train(
    config: Annotated[str, typer.Argument(help="Preset or YAML file of kind train.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this MLflow run, even with another config.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell memory, arithmetic and time, and start nothing.")
    ] = False,
    gpu: Annotated[str, typer.Option(help="Of --plan: H100, H200, A100, L40S or B200.")] = "H100",
    as_json: AsJson = False,
) -> None:
    """Train a model on a sharded corpus, and register the best weights as models:/NAME@candidate.

    The same command again continues the same run; when it has ended, nothing is left to do.
    """
    if plan:
        _tell_plan(config, overrides or [], gpu, as_json)
        return
    from dataclasses import asdict

    from workflows.config import load
    from workflows.training.train import run

    report = run(load("train", config, overrides or []), resume=resume)
    loss = "" if report.best_loss is None else f", held-out loss {report.best_loss:.4f}"
    typer.echo(f"{report.step} steps in {report.elapsed_s:.0f} s; best after {report.best_step}{loss}")
    if report.model:
        typer.echo(f"registered: {report.model.uri} (version {report.model.version})")
    if as_json:
        print_json(asdict(report))


def _tell_plan(config: str, overrides: list[str], gpu: str, as_json: bool) -> None:
    from workflows.config import load
    from workflows.training.planning.plan import plan
    from workflows.training.planning.table import lines

    made = plan(load("train", config, overrides), gpu)
    for line in lines(made):
        typer.echo(line)
    if as_json:
        print_json(made.to_json())


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Every registered model with its versions and aliases."""
    from workflows.training.models import listed

    rows = listed()
    for row in rows:
        aliases = ", ".join(f"@{alias}" for alias in row["aliases"])
        typer.echo(
            f"{row['name']} {row['version']} {aliases} corpus {row['corpus_version']} run {row['run_id']}"
        )
    if not rows:
        typer.echo("no model is registered yet; oneflow train registers one")
    if as_json:
        print_json({"models": rows})


@models_app.command()
def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    alias: Annotated[str, typer.Option(help="Alias that it gets.")] = "champion",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version. The gate of oneflow evaluate does this after its checks; this does it without."""
    from workflows.training.models import promoted

    done = promoted(model, alias)
    typer.echo(f"{done['uri']} is version {done['version']} (was {done['before'] or 'none'})")
    if as_json:
        print_json(done)


@models_app.command()
def export(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, an fsspec URL, a directory or embedded.")],
    out: Annotated[Path, typer.Argument(help="Directory for the model; must not hold one already.")],
    half: Annotated[bool, typer.Option("--half", help="Weights in float16: half the bytes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model with its tokenizer, encoders and card into a directory that needs no registry."""
    import torch

    from oneflow_core.pipeline import OneFlowPipeline

    try:
        pipeline = OneFlowPipeline.from_pretrained(model, dtype=torch.float16 if half else torch.float32)
        pipeline.save_pretrained(out)
    except ValueError as error:
        cause, _, mend = str(error).partition("; ")
        raise OneFlowError(f"exporting {model}", cause, mend or "see oneflow models list") from error
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    typer.echo(f"{model} (version {pipeline.identity['version']}) is at {out}, {size / 1e6:.1f} MB")
    if as_json:
        print_json({"model": dict(pipeline.identity), "directory": str(out), "bytes": size})


@models_app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    as_json: AsJson = False,
) -> None:
    """From a model back to its run, its corpora and the files that they were made from."""
    from workflows.training.models import traced

    line = traced(model)
    run = line["run"]
    typer.echo(
        f"model   {line['name']} version {line['version']}, weights sha256 {line['weights_sha256'][:12]}"
    )
    typer.echo(f"run     {run['id']} ({run['name']}), commit {line['git_commit'][:12]}")
    for corpus in line["corpora"]:
        typer.echo(f"corpus  {corpus['name']}@{corpus['version']} {corpus['url']}")
        for source in corpus["inputs"]:
            typer.echo(f"input   {source['source']} {source['url']} sha256 {source['sha256'][:12]}")
    if as_json:
        print_json(line)
