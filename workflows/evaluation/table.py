"""Every prompt, output and score as a table that MLflow's pages show, pictures included."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workflows.evaluation.figures import Judged, number
from workflows.evaluation.item import Item, Output, Part
from workflows.storage import sha256

TABLE, PICTURES = "table.json", "table"
MOST_CHARACTERS = 2000
"""Of one cell; items.jsonl has all."""
HEIGHT = 256
"""Pixels of a picture in the table at most; images.zip has them as they came."""


def write_table(judged: Judged, directory: Path, artifact_path: str, most: int) -> None:
    """Writes table.json and the pictures of the first `most` items below `directory`, which goes to `artifact_path`.

    MLflow takes a column for one of pictures by its first row, and wants a picture in every other: what has none
    shows a blank one.
    """
    album = _Album(directory / PICTURES, f"{artifact_path}/{PICTURES}")
    rows = list(zip(judged.items, judged.outputs, judged.scores, strict=True))
    names = list(dict.fromkeys(name for scores in judged.scores for name in scores))
    pictured = {
        "prompt_image": any(isinstance(part, bytes) for item in judged.items for part in item.prompt),
        "output_image": any(output.images for output in judged.outputs),
    }
    records = [
        _row(item, output, scores, names, album.place if index < most else album.blank, pictured)
        for index, (item, output, scores) in enumerate(rows)
    ]
    columns = list(records[0]) if records else []
    table = {"columns": columns, "data": [[record[c] for c in columns] for record in records]}
    (directory / TABLE).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")


def _row(
    item: Item,
    output: Output,
    scores: Mapping[str, float],
    names: Sequence[str],
    place: Callable[[Sequence[bytes]], Mapping[str, str]],
    pictured: Mapping[str, bool],
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item.id}
    for column, parts in (("prompt", item.prompt), ("output", output.parts)):
        if pictured[f"{column}_image"]:
            row[f"{column}_image"] = place([part for part in parts if isinstance(part, bytes)])
        row[column] = "".join(part if isinstance(part, str) else "<image>" for part in parts)[
            :MOST_CHARACTERS
        ]
    row |= {"truth": item.truth[:MOST_CHARACTERS], "error": output.error[:MOST_CHARACTERS]}
    row |= {name: number(scores[name]) if name in scores else None for name in names}
    return row | {"task": item.task, "split": item.split, "control": item.control}


class _Album:
    """Pictures in a directory, each once."""

    def __init__(self, directory: Path, artifact_path: str) -> None:
        self._directory, self._path = directory, artifact_path
        directory.mkdir(parents=True, exist_ok=True)

    def blank(self, images: Sequence[bytes]) -> Mapping[str, str]:
        """A blank picture in place of the images."""
        return self.place(())

    def place(self, images: Sequence[bytes]) -> Mapping[str, str]:
        """The images side by side as MLflow names a picture in a table."""
        name = f"{sha256(b''.join(images))[:16]}.png"
        if not (self._directory / name).exists():
            (self._directory / name).write_bytes(_side_by_side(images))
        path = f"{self._path}/{name}"
        return {"type": "image", "filepath": path, "compressed_filepath": path}


def _side_by_side(images: Sequence[bytes]) -> bytes:
    from PIL import Image

    tiles = [_open(data) for data in images] or [Image.new("RGB", (16, 16), "white")]
    height = max(tile.height for tile in tiles)
    strip = Image.new("RGB", (sum(tile.width for tile in tiles) + 4 * (len(tiles) - 1), height), "white")
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width + 4
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()


def _open(data: Part) -> Any:
    """The picture at `HEIGHT` at most; what cannot be read is a magenta square, as on the sheets."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")  # type: ignore[arg-type]
    except (OSError, ValueError, SyntaxError):
        return Image.new("RGB", (64, 64), "magenta")
    image.thumbnail((4 * HEIGHT, HEIGHT))
    return image
