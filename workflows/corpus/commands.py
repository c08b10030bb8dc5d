"""`oneflow corpus`: the commands of the corpus."""

from typing import Annotated, Literal

import typer

from workflows.corpus.quarantine_commands import quarantine_app
from workflows.output import AsJson, print_json

corpus_app = typer.Typer(help="Make, build and check corpora.", no_args_is_help=True)
corpus_app.add_typer(quarantine_app, name="quarantine")


@corpus_app.command()
def synth(
    out: Annotated[
        str, typer.Option("--out", metavar="URL", help="Where to write: a directory or fsspec URL.")
    ],
    documents: Annotated[int, typer.Option(help="How many documents.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.", min=0)] = 0,
    kind: Annotated[str, typer.Option(help="captions, vqa or stories.")] = "captions",
    split: Annotated[str, typer.Option(help="train, or heldout: what training never sees.")] = "train",
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels, a multiple of 64.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Write the procedural shapes corpus as ordinary webdataset tars and JSONL."""
    from dataclasses import asdict

    from workflows.corpus.synth import synthesise

    def progress(done: int) -> None:
        typer.echo(f"{kind}: {done}/{documents} documents", err=True)

    report = synthesise(out, documents, seed, kind, split, progress, size=size)  # type: ignore[arg-type]
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
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="At most N documents of each source, of 8 of its files: a first look."
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Wait for another builder of the corpus.")
    ] = 0.0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ingest, encode and shard the sources of a config; what was done before is not done again."""
    from workflows.config import load
    from workflows.corpus import build as job

    loaded = load("corpus", config, overrides or [])
    if limit is not None:
        loaded = loaded.model_copy(update={"first": limit})
    report = job.run(loaded, stage, wait)
    manifest = report.manifest
    if manifest is not None:
        what = f"{manifest.totals.samples:,} documents in {len(manifest.shards)} shards"
        seconds = f"built in {sum(report.seconds.values()):.1f} s: {report.what()}"
        done = seconds if report.made else "nothing to do"
        typer.echo(f"{manifest.name}@{manifest.version}: {what} at {manifest.base}: {done}")
    else:
        times = ", ".join(f"{name} done in {seconds:.1f} s" for name, seconds in report.seconds.items())
        typer.echo(f"{times}: {report.what()}")
    if report.retries:
        told = ", ".join(f"{count:,} {operation}" for operation, count in report.retries.items())
        typer.echo(f"requests to the store that were tried again: {told}")
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

    try:
        report = job.verify(url, deep)
    except job.Unsound as error:
        if as_json:
            print_json({"url": url, "deep": deep, "ok": False, "problems": list(error.problems)})
        raise
    found = f"{report.samples:,} samples in {report.seconds:.1f} s, {report.mb_s:,.0f} MB/s"
    typer.echo(f"{report.manifest.base}: {found}, all as the manifest says")
    if report.strangers:
        told = ", ".join(report.strangers[:SHOWN])
        typer.echo(f"files that belong to nothing there: {len(report.strangers):,} ({told})")
    if as_json:
        print_json(report.to_json())


@corpus_app.command()
def inspect(
    url: Corpus,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write a page with pictures there too (any URL)."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Documents to show.", min=0)] = 12,
    seed: Annotated[int, typer.Option(help="Another seed shows others.")] = 0,
    codec: Annotated[str, typer.Option(help="Codec that turns latents back into pictures.")] = "embedded",
    subfolder: Annotated[str | None, typer.Option(help="Where the codec lies in a repository: vae.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a corpus holds: counts, lengths, licences, documents, and what was refused."""
    from workflows.corpus import inspection
    from workflows.storage import put_atomic

    found = inspection.inspect(url, samples, seed)
    typer.echo(inspection.render(found), nl=False)
    if html is not None:
        put_atomic(html, inspection.page(found, codec, subfolder).encode())
        typer.echo(f"page written to {html}", err=True)
    if as_json:
        print_json(found.to_json())


SHOWN = 20


@corpus_app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The older: a version's directory, or shards/NAME.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The newer.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write every document that differs, as JSONL.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell which documents came, went or changed between two versions of a corpus."""
    import json

    from workflows.corpus.diff import diff as compare
    from workflows.storage import put_atomic

    report = compare(a, b)
    counts = ", ".join(f"{report.count(change)} {change}" for change in ("came", "went", "changed"))
    typer.echo(
        f"{report.a.name}@{report.a.version} -> {report.b.name}@{report.b.version}: {counts}, {report.same} same"
    )
    for change, name in report.inputs[:SHOWN]:
        typer.echo(f"  input {change}: {name}")
    for document in report.documents[:SHOWN]:
        what = f" ({', '.join(document.members)})" if document.members else ""
        typer.echo(f"  {document.change}: {document.key}{what}")
    left = max(0, len(report.documents) - SHOWN) + max(0, len(report.inputs) - SHOWN)
    if left:
        typer.echo(f"  and {left} more; --out FILE writes every document")
    if out is not None:
        put_atomic(out, "".join(json.dumps(d.to_json()) + "\n" for d in report.documents).encode())
    if as_json:
        print_json(report.to_json())


@corpus_app.command()
def gc(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="Root of the corpus, as in the config.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    grace_hours: Annotated[float, typer.Option(help="What is younger stays.", min=0)] = 24.0,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Versions of each corpus that stay, the newest. [default: all]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what no manifest under ROOT refers to: parts of what changed, builds that were never finished."""
    from workflows.corpus.gc import collect

    report = collect(root, dry_run=dry_run, grace_s=3600 * grace_hours, keep=keep)
    for stored, why in report.removed[:SHOWN]:
        typer.echo(f"  {stored.path} ({stored.size:,} bytes): {why}")
    if len(report.removed) > SHOWN:
        typer.echo(f"  and {len(report.removed) - SHOWN} more")
    done = "would be removed" if dry_run else "removed"
    kept = ", ".join(f"{count:,} {why}" for why, count in sorted(report.kept.items()))
    typer.echo(f"{len(report.removed):,} objects of {report.bytes:,} bytes {done}; kept: {kept or 'nothing'}")
    if as_json:
        print_json(report.to_json())
