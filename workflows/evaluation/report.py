"""What an evaluation found, as data and as files: figures, every item with its output, sheets of pictures."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.evaluation.figures import Figure, Judged
from workflows.evaluation.gate import Verdict
from workflows.evaluation.item import Item, Output, Part

if TYPE_CHECKING:
    from workflows.evaluation.comparison import Comparison

METRICS, ITEMS, IMAGES, SHEETS = "metrics.json", "items.jsonl", "images", "sheets"
SHEET_COLUMNS = 10
SHEET_IMAGES = 100


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One evaluation of one model; `judged` holds every item with its output and scores."""

    suite: str
    digest: str
    """Of the suite's items: figures of two models compare only where it is the same."""
    model: Mapping[str, str]
    """name, version, run_id."""
    figures: Mapping[str, Figure]
    judged: Judged
    seconds: float
    verdict: Verdict | None = None
    """What the gate said; None where nothing was judged."""
    promoted: bool = False
    """The alias points to this version."""
    run_id: str = ""
    """MLflow run that holds it; empty where none was at hand."""
    resumed: int = 0
    """Items whose outputs an earlier, unfinished evaluation had."""
    comparison: Comparison | None = None
    """With another model, where one was asked for."""

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure's value by name; those that are no number are left out."""
        values = {name: figure.to_json()["value"] for name, figure in self.figures.items()}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def failed(self) -> int:
        """Items that gave no output, whatever was tried; they count as wrong."""
        return sum(bool(output.error) for output in self.judged.outputs)

    def to_json(self) -> dict[str, Any]:
        """All but the items, as plain JSON."""
        return {
            "suite": self.suite,
            "digest": self.digest,
            "model": dict(self.model),
            "run_id": self.run_id,
            "items": len(self.judged.items),
            "failed": self.failed,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "metrics": self.metrics,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "rules": dict(self.judged.rules),
            "notes": list(self.judged.notes),
            "comparison": self.comparison.to_json() if self.comparison else None,
            "verdict": self.verdict.to_json() if self.verdict else None,
            "promoted": self.promoted,
        }


def write_items(judged: Judged, directory: Path) -> None:
    """Writes items.jsonl, images/ and sheets/ into `directory`."""
    (directory / IMAGES).mkdir(parents=True, exist_ok=True)
    (directory / SHEETS).mkdir(exist_ok=True)
    with (directory / ITEMS).open("w", encoding="utf-8") as stream:
        for item, output, scores in zip(judged.items, judged.outputs, judged.scores, strict=True):
            row = _row(item, output, scores, directory)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    for name, png in _sheets(judged):
        (directory / SHEETS / f"{name}.png").write_bytes(png)


def write_metrics(report: EvaluationReport, directory: Path) -> Path:
    """Writes metrics.json, the report without its items; returns its path."""
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False)
    (directory / METRICS).write_text(text + "\n", encoding="utf-8")
    return directory / METRICS


def pack_images(directory: Path) -> Path:
    """All of images/ in one zip beside it, for stores that are slow with many small files."""
    target = directory / f"{IMAGES}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted((directory / IMAGES).iterdir()):
            archive.write(file, file.name)
    return target


def _row(item: Item, output: Output, scores: Mapping[str, float], directory: Path) -> dict[str, Any]:
    stem = item.id.replace("/", "-")
    return {
        "id": item.id,
        "task": item.task,
        "split": item.split,
        "control": item.control,
        "detail": item.detail,
        "seed": item.seed,
        "prompt": _parts(item.prompt, f"{stem}-prompt", directory),
        "truth": item.truth,
        "scene": item.scene,
        "output": _parts(output.parts, stem, directory),
        "scores": dict(scores),
        "error": output.error,
        "attempts": output.attempts,
        "seconds": round(output.seconds, 4),
    }


def _parts(parts: Sequence[Part], stem: str, directory: Path) -> list[dict[str, str]]:
    shown = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            shown.append({"text": part})
        else:
            name = f"{IMAGES}/{stem}-{index}.png"
            (directory / name).write_bytes(part)
            shown.append({"image": name})
    return shown


def _sheets(judged: Judged) -> Iterator[tuple[str, bytes]]:
    """Generated pictures side by side, in the order of the items, one sheet a task and split."""
    groups: dict[str, list[bytes]] = {}
    for item, output in zip(judged.items, judged.outputs, strict=True):
        name = "-".join(filter(None, (*item.task.split("/"), item.split, item.control)))
        groups.setdefault(name, []).extend(output.images)
    for name, images in groups.items():
        if images:
            yield name, _sheet(images[:SHEET_IMAGES])


def _sheet(images: Sequence[bytes]) -> bytes:
    from PIL import Image

    tiles = []
    for png in images:
        try:
            tiles.append(Image.open(io.BytesIO(png)).convert("RGB").resize((64, 64)))
        except (OSError, ValueError, SyntaxError):
            tiles.append(Image.new("RGB", (64, 64), "magenta"))
    rows = -(-len(tiles) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (min(len(tiles), SHEET_COLUMNS) * 68, rows * 68), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % SHEET_COLUMNS * 68 + 2, index // SHEET_COLUMNS * 68 + 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
