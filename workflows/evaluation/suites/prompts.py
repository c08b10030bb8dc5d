"""Prompts and captions out of the files that people have them in."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from workflows.evaluation.suites.files import File

KEYS = ("prompt", "caption", "text")
NAMES = ("item_id", "id", "image_id")


@dataclass(frozen=True, slots=True)
class Captions:
    """Reference captions by picture; `refused` holds what could not be read, with the reason."""

    references: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]


def read_captions(file: File, split: str | None = None) -> Captions:
    """COCO's captions JSON, Karpathy's dataset JSON, or a JSON of picture -> captions.

    Pictures bear their file's name where the file says it, else their id. UsageError for another layout.
    """
    tree = file.json()
    if not isinstance(tree, dict) or not tree:
        raise file.refused("it holds no JSON object with captions")
    if isinstance(tree.get("annotations"), list):
        return _coco(file, tree)
    if isinstance(tree.get("images"), list):
        return _karpathy(file, tree, split)
    plain: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for name, captions in tree.items():
        if isinstance(captions, list) and captions and all(isinstance(c, str) for c in captions):
            plain[name] = tuple(captions)
        else:
            refused[name] = "its captions are no list of texts"
    if not plain:
        raise file.refused("it has neither annotations, nor images, nor lists of captions by picture")
    return Captions(plain, refused)


def read_prompts(file: File) -> tuple[dict[str, str], dict[str, str]]:
    """Prompts by id (their line's number where the file has none), and rows that were refused, with the reason."""
    suffix = PurePosixPath(file.url).suffix.lower()
    if suffix == ".txt":
        lines = file.text().split("\n")
        rows: dict[str, Any] = {f"{n:06d}": {"text": line} for n, line in enumerate(lines) if line.strip()}
    elif suffix == ".jsonl":
        rows = _json_rows(file)
    elif suffix in (".csv", ".tsv"):
        reader = csv.DictReader(
            io.StringIO(file.text(), newline=""), delimiter="," if suffix == ".csv" else "\t"
        )
        rows = {f"{n:06d}": row for n, row in enumerate(reader)}
    else:
        raise file.refused(f'a suffix "{suffix}"')
    prompts: dict[str, str] = {}
    refused: dict[str, str] = {}
    for number, row in rows.items():
        text, name = _prompt_of(row)
        name = name or number
        if text and name not in prompts:
            prompts[name] = text
        else:
            refused[f"row {number}"] = (
                f"id {name} comes twice" if text else f"it has none of {', '.join(KEYS)}"
            )
    if not prompts:
        raise file.refused(f"no row has any of {', '.join(KEYS)}")
    return prompts, refused


def _json_rows(file: File) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for number, line in enumerate(file.text().split("\n")):
        if line.strip():
            try:
                rows[f"{number:06d}"] = json.loads(line)
            except ValueError:
                rows[f"{number:06d}"] = None
    return rows


def _prompt_of(row: Any) -> tuple[str, str]:
    """Text and id of a row; "" for what it lacks."""
    if not isinstance(row, dict):
        return "", ""
    held = {str(k).lower(): v for k, v in row.items()}
    text = next((v.strip() for k in KEYS if isinstance(v := held.get(k), str) and v.strip()), "")
    name = next((str(v) for k in NAMES if (v := held.get(k)) not in (None, "")), "")
    return text, name


def _coco(file: File, tree: Mapping[str, Any]) -> Captions:
    images = tree.get("images")
    files = {
        str(i["id"]): str(i["file_name"])
        for i in (images if isinstance(images, list) else [])
        if isinstance(i, dict) and {"id", "file_name"} <= i.keys()
    }
    captions: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, str] = {}
    for place, row in enumerate(tree["annotations"]):
        if isinstance(row, dict) and isinstance(row.get("caption"), str) and "image_id" in row:
            captions[files.get(str(row["image_id"]), str(row["image_id"]))].append(row["caption"])
        else:
            refused[f"annotation {place}"] = "it has no image_id or no caption"
    if not captions:
        raise file.refused("none of its annotations has an image_id and a caption")
    return Captions({name: tuple(texts) for name, texts in captions.items()}, refused)


def _karpathy(file: File, tree: Mapping[str, Any], split: str | None) -> Captions:
    captions: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for place, row in enumerate(tree["images"]):
        try:
            if split is None or row["split"] == split:
                captions[str(row["filename"])] = tuple(str(s["raw"]) for s in row["sentences"])
        except (KeyError, TypeError):
            refused[f"image {place}"] = "it lacks split, filename or sentences"
    if not captions:
        raise file.refused(f"no image with captions{f' of split {split}' if split else ''}")
    return Captions(captions, refused)
