"""`oneflow encoders`: fitting and measuring the embedded image encoders."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from workflows.output import AsJson, print_json

encoders_app = typer.Typer(help="Make and measure the small image encoders.", no_args_is_help=True)


Pictures = Annotated[int, typer.Option(min=3, help="Held-out pictures of each kind to measure on.")]


class Encoder(StrEnum):
    """Which of the two embedded encoders."""

    LATENT = "latent"
    UNDERSTANDING = "understanding"


@encoders_app.command()
def fit(
    encoder: Annotated[
        Encoder, typer.Argument(help="latent (an AutoencoderKL) or understanding (a SigLIP).")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write; one that is there is replaced at the end.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; the recipe's where not given.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="End no later than this.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    pictures: Pictures = 510,
    as_json: AsJson = False,
) -> None:
    """Fit an encoder from scratch by the recipe of the embedded one, and measure it on what it never saw."""
    from workflows.encoders.fit import fit_encoder

    given = {k: v for k, v in (("steps", steps), ("minutes", minutes)) if v is not None}
    report = fit_encoder(
        encoder.value, out, {**given, "seed": seed}, pictures, lambda line: typer.echo(line, err=True)
    )
    typer.echo(f"{report['id']} written to {out}")
    if as_json:
        print_json(report)


@encoders_app.command()
def measure(
    encoder: Annotated[Encoder, typer.Argument(help="latent or understanding.")],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="embedded, a directory, or a hub name.")
    ] = "embedded",
    subfolder: Annotated[str | None, typer.Option(help="Folder inside it, such as vae.")] = None,
    pictures: Pictures = 510,
    as_json: AsJson = False,
) -> None:
    """Measure an encoder on scenes and pictures that the embedded ones never saw: PSNR, or what can be read out."""
    import json

    from workflows.encoders.fit import measure_encoder

    report = measure_encoder(encoder.value, name, subfolder, pictures)
    if as_json:
        print_json(report)
    else:
        typer.echo(json.dumps(report, indent=2))
