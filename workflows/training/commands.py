"""`oneflow train` and `oneflow models`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.errors import OneFlowError, Refused, UsageError
from workflows.output import AsJson, print_json

MENDING = "restore what is gone, or train and register anew from what is there"
if TYPE_CHECKING:
    from workflows.training.config import TrainConfig

models_app = typer.Typer(
    help="Registered models: list, promote, roll back, follow back to what they came from.",
    no_args_is_help=True,
)


def train(
    config: Annotated[str, typer.Argument(help="Preset or YAML file of kind train.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this MLflow run, even with another config.")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Only look at a bad step: <run root>/faults/step-N/rank-R."),
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

    if replay:
        return _replay(config, overrides or [], replay, as_json)
    loaded = load("train", config, overrides or [])
    report = run(loaded, resume=resume)
    loss = "" if report.best_loss is None else f", held-out loss {report.best_loss:.4f}"
    typer.echo(f"{report.step} steps in {report.elapsed_s:.0f} s; best after {report.best_step}{loss}")
    if report.model:
        typer.echo(f"registered: {report.model.uri} (version {report.model.version})")
    _tell_charts(loaded, report.run_id)
    if as_json:
        print_json(asdict(report))


def _replay(config: str, overrides: list[str], url: str, as_json: bool) -> None:
    from dataclasses import asdict

    from workflows.config import load
    from workflows.training.replay import replay

    told = replay(load("train", config, overrides), url)
    typer.echo(f"step {told.step}, rank {told.rank}: {told.reason}; weights of step {told.weights_of_step}")
    for number, pack in enumerate(told.packs):
        parts = " ".join(f"{name} {value}" for name, value in pack.parts.items())
        typer.echo(f"pack {number}: {len(pack.documents)} documents, loss {pack.loss}: {parts}")
        bad = [*pack.bad_parts, *(f"gradient of {name}" for name in pack.bad_gradients)]
        typer.echo(f"no numbers: {', '.join(bad) or 'none'}")
        typer.echo(f"documents: {', '.join(pack.documents)}")
    if as_json:
        print_json(asdict(told))


def _tell_charts(config: "TrainConfig", run_id: str | None) -> None:
    from workflows.runs.overview import charts_url
    from workflows.tracking import client_of
    from workflows.training.worker import tracking_uri

    server = tracking_uri(config)
    if server and server.startswith("http") and run_id:
        experiment_id = client_of(server).get_run(run_id).info.experiment_id
        typer.echo(f"charts: {charts_url(experiment_id, server)}")


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
def rollback(
    model: Annotated[str, typer.Argument(help="models:/NAME.")],
    alias: Annotated[str, typer.Option(help="Alias that goes back.")] = "champion",
    as_json: AsJson = False,
) -> None:
    """Point an alias at the version that held it before; again, and it goes one further back. Exit 3: there is none."""
    from workflows.training.models import rolled_back

    done = rolled_back(model, alias)
    typer.echo(f"{done['uri']} is version {done['version']} again (was {done['before']})")
    if as_json:
        print_json(done)


@models_app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="models:/NAME@ALIAS, an fsspec URL, a directory, embedded, or runs:/RUN: the newest checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Directory for the model; must not hold one already.")],
    half: Annotated[bool, typer.Option("--half", help="Weights in float16: half the bytes.")] = False,
    step: Annotated[int | None, typer.Option(help="Of runs:/RUN: the checkpoint of this step.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Of runs:/RUN: the weights themselves, not their average.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model with its tokenizer, encoders and card into a directory that needs no registry.

    One tensor at a time is in memory; above 2 GiB the weights lie in several files with an index.
    """
    if model.startswith("runs:/"):
        if half:
            raise UsageError(
                "--half", "a run's checkpoint is exported as it is", "export that directory again"
            )
        from workflows.training.models import exported_run

        identity = exported_run(model.removeprefix("runs:/"), out, step, raw)
    elif step is not None or raw:
        raise UsageError(f"model {model}", "--step and --raw are for runs:/RUN", "leave them out")
    else:
        identity = _copied(model, out, half)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    typer.echo(f"{model} (version {identity['version']}) is at {out}, {size / 1e6:.1f} MB")
    if as_json:
        print_json({"model": identity, "directory": str(out), "bytes": size})


def _copied(model: str, out: Path, half: bool) -> dict[str, str]:
    """What was copied: name, version, run_id."""
    import torch

    from oneflow_core.model_directory import copy
    from oneflow_core.model_source import local_directory

    try:
        with local_directory(model) as (directory, facts):
            parts, version = copy(directory, out, torch.float16 if half else torch.float32)
    except ValueError as error:
        cause, _, mend = str(error).partition("; ")
        raise OneFlowError(f"exporting {model}", cause, mend or "see oneflow models list") from error
    return {"name": "", "version": version, "run_id": parts.notes.get("run_id", ""), **facts}


@models_app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    files: Annotated[bool, typer.Option("--files", help="List every source file.")] = False,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every source file there, as JSONL (any URL).")
    ] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write the tree as a page there.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that each link is there and digests agree; exit 3 if not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """From a model back to its run, its corpora, their source files, and the model that it starts from."""
    from workflows.lineage import chain, page, text
    from workflows.lineage.verification import checked
    from workflows.storage import put_atomic
    from workflows.tracking_server import tracking_server
    from workflows.training.models import MEND

    with tracking_server(model, MEND) as client:
        traced = chain.trace(client, model)
        for line in text.lines(traced, files=files):
            typer.echo(line)
        checks = list(checked(client, traced, typer.echo)) if verify else []
    if out is not None:
        put_atomic(out, page.files_jsonl(traced))
    if html is not None:
        put_atomic(html, page.render(traced).encode())
    if as_json:
        print_json(traced.to_json(files=files) | {"checks": [check.to_json() for check in checks]})
    if broken := [check for check in checks if not check.ok]:
        told = "; ".join(f"{check.link}: {check.found}" for check in broken)
        raise Refused(
            f"the lineage of {model}", f"{len(broken)} of {len(checks)} links do not hold: {told}", MENDING
        )
