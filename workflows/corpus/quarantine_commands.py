"""`oneflow corpus quarantine`: look at what was refused, take it out to mend it, try it again."""

from typing import Annotated, Literal

import typer

from workflows.output import AsJson, print_json

quarantine_app = typer.Typer(help="List, export and retry what was refused.", no_args_is_help=True)

Root = Annotated[str, typer.Argument(metavar="ROOT", help="Root of the corpus, as in the config.")]
Stage = Annotated[Literal["ingest", "encode"] | None, typer.Option(help="Of this stage alone.")]
Source = Annotated[str | None, typer.Option(metavar="NAME", help="Of this source alone.")]
Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Reasons that begin so: 'upstream', 'filtered: size'.")
]


@quarantine_app.command("list")
def list_refused(
    root: Root,
    stage: Stage = None,
    source: Source = None,
    reason: Reason = None,
    rows: Annotated[int, typer.Option(help="Rows to show below the counts.", min=0)] = 20,
    as_json: AsJson = False,
) -> None:
    """Tell what was refused, by source and reason, and the first rows of it."""
    from workflows.corpus import quarantine

    wanted = quarantine.Wanted(stage, source, reason)
    counts = quarantine.summary(root, wanted)
    shown = quarantine.first(root, wanted, rows)
    for (at, of, why), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        typer.echo(f"{count:>12,}  {at:<7} {of:<20} {why}")
    typer.echo(f"{counts.total():>12,}  in all")
    for row in shown:
        typer.echo(f"  {row['file']} {row['key']}: {row['reason']}: {bytes(row['head'] or b'')[:60]!r}")
    if as_json:
        told = [
            {"stage": at, "source": of, "reason": why, "rows": n}
            for (at, of, why), n in sorted(counts.items())
        ]
        print_json(
            {"root": root, "rows": counts.total(), "counts": told, "first": [*map(quarantine.plain, shown)]}
        )


@quarantine_app.command()
def export(
    root: Root,
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="FILE|DIR", help="A .jsonl or .parquet file; with --payload a directory."
        ),
    ],
    stage: Stage = None,
    source: Source = None,
    reason: Reason = None,
    payload: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG", help="Write the texts and images too, read again from this config's sources."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the refused rows to a file; or, with what they hold, to a directory."""
    from workflows.corpus import quarantine

    wanted = quarantine.Wanted(stage, source, reason)
    files = 0
    if payload is None:
        count = quarantine.export(root, out, wanted)
    else:
        from workflows.config import load
        from workflows.corpus.payload import export_payload
        from workflows.storage import join

        count = quarantine.export(root, join(out, "rows.jsonl"), wanted)
        files = export_payload(load("corpus", payload, [f"root={root}"]), out, wanted)
    typer.echo(f"{count:,} rows written to {out}" + (f", with {files:,} files" if payload else ""))
    if as_json:
        print_json({"out": out, "rows": count, "files": files})


@quarantine_app.command()
def retry(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset (shapes) or a YAML file.")],
    stage: Stage = None,
    source: Source = None,
    reason: Reason = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ingest the files with refused rows again, and let encode try again what it refused; then build."""
    from workflows.config import load
    from workflows.corpus.accounts import told
    from workflows.corpus.quarantine import Wanted
    from workflows.corpus.retry import retry as job

    report = job(load("corpus", config, overrides or []), Wanted(stage, source, reason))
    typer.echo(
        f"{report.files:,} files read again: {report.recovered:,} rows recovered, {sum(report.still.values()):,} still"
        f" refused ({told(report.still)}), {report.new:,} newly refused"
    )
    if report.images:
        typer.echo(f"{report.images:,} images that encode refused will be tried again")
    if report.recovered or report.images:
        typer.echo("run oneflow corpus build to take them in")
    if as_json:
        print_json(report.to_json())
