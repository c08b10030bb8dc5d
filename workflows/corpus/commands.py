"""`oneflow corpus`: the commands of the corpus."""

from typing import Annotated, Literal

import typer

from workflows.output import AsJson, print_json

corpus_app = typer.Typer(help="Make, build and check corpora.", no_args_is_help=True)


@corpus_app.command()
def synth(
    out: Annotated[
        str, typer.Option("--out", metavar="URL", help="Where to write: a directory or fsspec URL.")
    ],
    documents: Annotated[int, typer.Option(help="How many documents.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.", min=0)] = 0,
    kind: Annotated[str, typer.Option(help="captions, vqa or stories.")] = "captions",
    split: Annotated[str, typer.Option(help="train, or heldout: what training never sees.")] = "train",
    as_json: AsJson = False,
) -> None:
    """Write the procedural shapes corpus as ordinary webdataset tars and JSONL."""
    from dataclasses import asdict

    from workflows.corpus.synth import synthesise

    def progress(done: int) -> None:
        typer.echo(f"{kind}: {done}/{documents} documents", err=True)

    report = synthesise(out, documents, seed, kind, split, progress)  # type: ignore[arg-type]
    done = "written" if report.wrote else "already there, nothing to do"
    typer.echo(f"{report.documents} {kind} at {report.url}: {done}")
    if as_json:
        print_json(asdict(report))


Stage = Literal["ingest", "encode", "shard"]
Corpus = Annotated[
    str, typer.Argument(metavar="URL", help="A version's directory, or shards/NAME for the latest.")
]


@corpus_app.command()
def build(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset (shapes) or a YAML file.")],
    stage: Annotated[Stage | None, typer.Option(help="Run this stage alone.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ingest, encode and shard the sources of a config; what was done before is not done again."""
    from workflows.config import load
    from workflows.corpus import build as job

    report = job.run(load("corpus", config, overrides or []), stage)
    manifest = report.manifest
    if manifest is not None:
        what = f"{manifest.totals.samples:,} documents in {len(manifest.shards)} shards"
        done = f"built in {sum(report.seconds.values()):.1f} s" if report.made else "nothing to do"
        typer.echo(f"{manifest.name}@{manifest.version}: {what} at {manifest.base}: {done}")
    else:
        typer.echo(", ".join(f"{name} done in {seconds:.1f} s" for name, seconds in report.seconds.items()))
    if as_json:
        print_json(report.to_json())


@corpus_app.command()
def verify(
    url: Corpus,
    deep: Annotated[bool, typer.Option("--deep", help="Open every sample, check shapes and values.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every shard against the manifest; exit 3 where something does not hold."""
    from workflows.corpus import verify as job

    report = job.verify(url, deep)
    typer.echo(f"{report.manifest.base}: {report.samples:,} samples, all as the manifest says")
    if as_json:
        print_json(report.to_json())


@corpus_app.command()
def inspect(url: Corpus, as_json: AsJson = False) -> None:
    """Show what a corpus holds: counts, lengths, licences, and what was refused."""
    from workflows.corpus import inspection

    found = inspection.inspect(url)
    typer.echo(inspection.render(found), nl=False)
    if as_json:
        print_json(found.to_json())
