"""`oneflow serve` and `oneflow generate`."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from workflows.errors import OneFlowError, UsageError
from workflows.output import print_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.sampling.types import Target

Model = Annotated[str, typer.Argument(help="A directory, an fsspec URL, models:/NAME@ALIAS, or embedded.")]


def serve(
    model: Model = "embedded",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(help="Copies of the model.", min=1)] = 1,
    cpus: Annotated[float, typer.Option(help="Cores of a replica.", min=0.1)] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of a replica.", min=0)] = 0,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16; auto: float32, where the same seed gives the same text.")
    ] = "auto",
    batch: Annotated[int, typer.Option(help="Documents that a replica makes at once.", min=1)] = 16,
    queue: Annotated[int, typer.Option(help="Documents that wait at a replica; more get 429.", min=0)] = 64,
    autoscale: Annotated[str, typer.Option(help="MIN:MAX copies, by load, instead of --replicas.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the API key to ask for.")] = "",
    follow: Annotated[
        float, typer.Option(help="Seconds between looks at where @ALIAS points; 0 is never.", min=0)
    ] = 0,
    body_timeout: Annotated[
        float, typer.Option(help="Seconds that a request's body may take to arrive.", min=0.1)
    ] = 30,
) -> None:
    """Serve a model over HTTP until Ctrl-C, on the Ray at RAY_ADDRESS or on one of its own."""
    from workflows.serving.service import Address, serving

    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    fewest, most = _bounds(autoscale) if autoscale else (replicas, None)
    options = {
        "replicas": fewest,
        "max_replicas": most,
        "cpus": cpus,
        "gpus": gpus,
        "dtype": dtype,
        "batch": batch,
        "queue": queue,
        "api_key_env": api_key_env,
        "follow_s": follow,
        "body_s": body_timeout,
    }
    with serving(model, address=Address(host, port), **options) as url:
        typer.echo(f"{model} is served at {url} (page: {url}/, API: POST {url}/v1/generate); Ctrl-C ends it")
        asked.wait()


def _bounds(autoscale: str) -> tuple[int, int]:
    fewest, _, most = autoscale.partition(":")
    if not (fewest.isdigit() and most.isdigit() and 1 <= int(fewest) <= int(most)):
        raise UsageError(
            f"--autoscale {autoscale}", "not MIN:MAX with 1 <= MIN <= MAX", "write it like --autoscale 1:4"
        )
    return int(fewest), int(most)


def generate(
    model: Model = "embedded",
    prompt: Annotated[str, typer.Option(help="Text that is given.")] = "",
    image: Annotated[list[Path] | None, typer.Option(help="Image that is given, before the text.")] = None,
    target: Annotated[str | None, typer.Option(help="image, text or document.")] = None,
    out: Annotated[Path, typer.Option(help="Directory for images and the trace.")] = Path("generated"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same document.", min=0)] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", min=1, max=10_000)] = None,
    guidance: Annotated[float | None, typer.Option(help="How hard the prompt pulls.", min=0)] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the words; 0 is greedy.", min=0)] = None,
    url: Annotated[str, typer.Option(help="Ask the server there; MODEL is not loaded.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's API key.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")] = False,
) -> None:
    """Generate one document: an image for a text, a text for an image (with --image), or both.

    Prints the text, and saves images (PNG) and the trace of the insertions under --out.
    """
    files = image or []
    if not prompt and not files:
        raise UsageError("oneflow generate", "nothing is given", "give --prompt TEXT or --image FILE")
    aim = target or ("text" if files else "image")
    if aim not in ("image", "text", "document"):
        raise UsageError(f"--target {aim}", "no such target", "choose image, text or document")
    given: list[str | Image] = [_open(file) for file in files]
    if prompt:
        given.append(prompt)
    options = {"steps": steps, "guidance": guidance, "temperature": temperature}
    if url:
        made = _asked(url, api_key_env, given, cast("Target", aim), seed, options)
    else:
        made = _computed(model, given, cast("Target", aim), seed, options)
    _show(*made, out, as_json)


Made = tuple[Sequence["str | Image"], dict[str, str], dict[str, Any]]
"""Segments, the model that made them, and the trace."""


def _computed(
    model: str, given: Sequence[str | Image], aim: Target, seed: int, options: dict[str, Any]
) -> Made:
    from oneflow_core.pipeline import OneFlowPipeline, Prompt

    try:
        pipeline = OneFlowPipeline.from_pretrained(model)
        (document,) = pipeline([Prompt(tuple(given), aim)], seeds=seed, **options)
    except ValueError as error:
        cause, _, mend = str(error).partition("; ")
        raise OneFlowError(f"generating with {model}", cause, mend or "see --help") from error
    return document.segments, dict(pipeline.identity), document.trace.to_json()


def _asked(
    url: str, key_variable: str, given: Sequence[str | Image], aim: Target, seed: int, options: dict[str, Any]
) -> Made:
    from workflows.client import Client

    key = os.environ.get(key_variable) if key_variable else None
    if key_variable and not key:
        raise UsageError(f"--api-key-env {key_variable}", "it is not set", "set it to the server's key")
    with Client(url, api_key=key) as client:
        answer = client.generate(given, target=aim, seed=seed, trace=True, **options)
    return answer.segments, answer.model, answer.trace or {}


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"--image {path}", str(error), "name an image file that can be read") from error
    return image


def _show(
    made: Sequence[str | Image], identity: dict[str, str], trace: dict[str, Any], out: Path, as_json: bool
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    segments: list[dict[str, str]] = []
    for number, segment in enumerate(made):
        if isinstance(segment, str):
            typer.echo(segment)
            segments.append({"type": "text", "text": segment})
            continue
        path = out / f"image-{number}.png"
        segment.save(path)
        typer.echo(str(path))
        segments.append({"type": "image", "file": str(path)})
    file = out / "trace.json"
    answer = {"segments": segments, "model": identity, "trace": trace}
    file.write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(f"{file}: which piece came when", err=True)
    if as_json:
        print_json({"segments": segments, "model": identity, "trace_file": str(file)})
