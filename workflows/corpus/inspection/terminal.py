"""An inspection as tables for a terminal."""

import io
from collections.abc import Sequence
from typing import Any

from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from oneflow_core.document import TextSegment
from workflows.corpus.inspection.figures import Inspection
from workflows.corpus.inspection.histogram import Histogram

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 110
SHOWN_TEXT = 160


def render(found: Inspection) -> str:
    """The figures, histograms, sources and a few documents, as plain text."""
    from rich.console import Console

    manifest, totals = found.manifest, found.manifest.totals
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(f"[bold]{manifest.name}[/] version {manifest.version} at {manifest.base}")
    console.print(
        f"{totals.samples:,} documents, {totals.images:,} images, {totals.text_bytes:,} bytes of text, "
        f"{len(manifest.shards):,} shards of {totals.bytes / 1e6:,.1f} MB together"
    )
    wide = "" if found.latent_std is None else f", deviation {found.latent_std:.2f}"
    console.print(f"latents {shapes_of(manifest)} by {manifest.codec}{wide}")
    console.print(f"features {shape_of(manifest.features_shape)} by {manifest.encoder}")
    lengths = ", ".join(f"{name} {size:,}" for name, size in found.document_bytes.items())
    console.print(f"bytes of a document's JSON: {lengths}")
    counted = ", ".join(f"{count:,} documents with {n}" for n, count in found.images.items())
    console.print(f"images: {counted}{part_of(found.indexed, totals.samples)}")
    licences = sorted(manifest.licences.items(), key=lambda item: -item[1])
    console.print("licences: " + ", ".join(f"{name} {count:,}" for name, count in licences))
    console.print(_sources(manifest))
    console.print(_histograms(found.histograms, f"of {found.opened:,} documents"))
    if found.samples:
        console.print(_documents(found.samples))
    if found.refused:
        console.print(_examples(found.refused))
    return console.export_text()


def shape_of(shape: tuple[int, ...] | None) -> str:
    """`16x8x8`, or `(none)`."""
    return "x".join(map(str, shape)) if shape else "(none)"


def shapes_of(manifest: Manifest) -> str:
    """The shapes of the latents."""
    return ", ".join(map(shape_of, manifest.latent_shapes)) or "(none)"


def part_of(looked: int, total: int) -> str:
    """Says that a figure is of a part, where it is."""
    return "" if looked == total else f" (of {looked:,} that were looked at)"


def share(count: int, total: int) -> str:
    """`12.5%`."""
    return f"{100 * count / total:.1f}%" if total else "-"


def printable(text: str, most: int) -> str:
    """At most `most` characters of `text` on one line, nothing in it that a terminal would obey."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else "." for c in text)
    return line if len(line) <= most else line[: most - 1] + "…"


def _sources(manifest: Manifest) -> Any:
    from rich.table import Table

    files: dict[str, int] = {}
    for given in manifest.inputs:
        files[given.source] = files.get(given.source, 0) + 1
    table = Table("source", "files", "read", "kept", "of the corpus", "refused or left out")
    for source, account in manifest.accounts.items():
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(account.refused.items()))
        part = share(account.kept, manifest.totals.samples)
        cells = (f"{files.get(source, 0):,}", f"{account.read:,}", f"{account.kept:,}", part)
        table.add_row(source, *cells, reasons or "-")
    return table


def _histograms(histograms: Sequence[Histogram], note: str) -> Any:
    from rich.table import Table

    table = Table(note, "from", "spread", "to", "p5", "median", "p95")
    for found in histograms:
        if not found.counts:
            continue
        top = max(found.counts)
        bars = "".join(BLOCKS[-(-c * (len(BLOCKS) - 1) // top)] for c in found.counts)
        quantiles = [_short(found.quantiles[q]) for q in ("p5", "p50", "p95")]
        named = f"{found.name} ({found.unit})"
        table.add_row(named, _short(found.edges[0]), bars, _short(found.quantiles["max"]), *quantiles)
    return table


def _documents(samples: Sequence[Sample]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("document", "licence", "what it says", show_lines=False)
    for sample in samples:
        parts = [
            s.text if isinstance(s, TextSegment) else f"[{s.width}x{s.height}]"
            for s in sample.document.segments
        ]
        cells = (sample.document.doc_id, sample.document.licence, " ".join(parts))
        table.add_row(*(Text(printable(cell, SHOWN_TEXT)) for cell in cells))
    return table


def _examples(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("refused", "key", "why", "first bytes")
    for row in rows:
        shown = printable(row["head"].decode("utf-8", "replace"), 40)
        cells = (row["file"].rpartition("/")[2], row["key"], row["reason"], shown)
        table.add_row(*(Text(printable(str(cell), 60)) for cell in cells))
    return table


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
