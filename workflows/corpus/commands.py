"""`oneflow corpus`: the commands of the corpus."""

from typing import Annotated

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
