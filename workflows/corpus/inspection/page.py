"""An inspection as one HTML page that needs nothing else: pictures inside, no script, no network."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from oneflow_core.document import ImageSegment
from workflows.corpus.inspection.figures import Inspection
from workflows.corpus.inspection.histogram import Histogram
from workflows.corpus.inspection.terminal import part_of, printable, shape_of, shapes_of, share
from workflows.templates import templates

WIDTH, HEIGHT, FOOT = 320, 120, 16
MOST_SIDE = 256
"""Pixels of the longer side of a picture on the page."""
LONGEST = 2000
"""Characters of a text that are shown."""

Decoded = Sequence[NDArray[np.uint8] | None]


def page(found: Inspection, codec: str = "embedded", subfolder: str | None = None) -> str:
    """The whole page; `codec` is the name or directory of the codec that turns latents back into pictures.

    Where it is not the one that the corpus was encoded with, or cannot be loaded, the page says so in the pictures'
    place. All that comes from the corpus is escaped.
    """
    pictures, note = decode(found.manifest, found.samples, codec, subfolder)
    environment = templates(Path(__file__).parent)
    environment.filters["grouped"] = lambda n: f"{n:,}"
    manifest = found.manifest
    return environment.get_template("page.html").render(
        found=found,
        manifest=manifest,
        latents=shapes_of(manifest),
        features=shape_of(manifest.features_shape),
        shares={name: share(a.kept, manifest.totals.samples) for name, a in manifest.accounts.items()},
        licences=sorted(manifest.licences.items(), key=lambda item: -item[1]),
        indexed=part_of(found.indexed, manifest.totals.samples),
        charts=[(h, bars(h)) for h in found.histograms if h.counts],
        documents=[(s.document, _parts(s, p)) for s, p in zip(found.samples, pictures, strict=True)],
        note=note,
        refused=[
            {**row, "head": printable(row["head"].decode("utf-8", "replace"), 80)} for row in found.refused
        ],
    )


def decode(
    manifest: Manifest, samples: Sequence[Sample], codec: str, subfolder: str | None
) -> tuple[list[Decoded], str]:
    """Pictures of the samples' latents, uint8 [H, W, 3], and why there are none where there are none."""
    from oneflow_core.encoders import EncoderError, LatentCodec

    nothing: list[Decoded] = [[None] * len(sample.latents) for sample in samples]
    if manifest.codec is None:
        return nothing, ""
    try:
        model = LatentCodec.from_pretrained(codec, subfolder=subfolder)
    except EncoderError as error:
        return nothing, f"The pictures are not shown: codec {codec}: {error}"
    if model.id != manifest.codec:
        made = f"they were encoded by {manifest.codec}, and {codec} is {model.id}"
        return nothing, f"The pictures are not shown: {made}; name the right one with --codec."
    return [[_picture(model, latent) for latent in sample.latents] for sample in samples], ""


def bars(histogram: Histogram) -> str:
    """An `<svg>` of the counts, with the range below it and a title for each bar."""
    top, step = max(histogram.counts), WIDTH / len(histogram.counts)
    drawn = []
    for i, count in enumerate(histogram.counts):
        height = (HEIGHT - FOOT) * count / top
        low, high = (_short(edge) for edge in histogram.edges[i : i + 2])
        title = f"<title>{low} to {high}: {count:,}</title>"
        box = f'x="{i * step + 1:.1f}" y="{HEIGHT - FOOT - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}"'
        drawn.append(f'<rect class="bar" {box}>{title}</rect>')
    ends = (("0", "start", histogram.edges[0]), (str(WIDTH), "end", histogram.quantiles["max"]))
    feet = [
        f'<text class="tick" x="{x}" y="{HEIGHT - 3}" text-anchor="{a}">{_short(v)}</text>'
        for x, a, v in ends
    ]
    label = escape(f"{histogram.name}, in {histogram.unit}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn + feet)}</svg>'
    )


def _picture(model: Any, latent: NDArray[np.float16]) -> NDArray[np.uint8]:
    import torch

    with torch.no_grad():
        decoded: NDArray[np.uint8] = model.decode(torch.from_numpy(latent.astype(np.float32))[None])[0]
    return decoded


def _parts(sample: Sample, pictures: Decoded) -> list[dict[str, str]]:
    """The segments in order: text, or a picture with its size; and the role of each."""
    parts, left = [], iter(pictures)
    for segment in sample.document.segments:
        if isinstance(segment, ImageSegment):
            pixels, size = next(left), f"{segment.width} x {segment.height}"
            image = "" if pixels is None else _data_uri(pixels)
            parts.append({"role": segment.role, "image": image, "size": size, "text": ""})
        else:
            parts.append({"role": segment.role, "image": "", "size": "", "text": segment.text[:LONGEST]})
    return parts


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
