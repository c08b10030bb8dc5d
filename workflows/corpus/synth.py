"""The shapes corpus on disk, as if it came from somebody else: ordinary webdataset tars and JSONL.

A part is a pure function of (kind, split, seed, part number), so the same arguments give the same bytes.
`<kind>.json`, written last, says that everything is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from oneflow_core.shapes import (
    SPLITS,
    Scene,
    Split,
    ask,
    caption,
    render,
    sample_in_split,
    sample_story,
    split_of,
)
from oneflow_core.shapes.render import IMAGE_SIZE
from workflows.errors import UsageError
from workflows.storage import exists, join, put_atomic, read_json, write_json

SynthKind = Literal["captions", "vqa", "stories"]
SynthSplit = Literal["train", "heldout"]
KINDS: tuple[SynthKind, ...] = get_args(SynthKind)
FORMAT = 1
"""Goes up when the same arguments give other bytes."""
PART_DOCUMENTS = 1000
LICENCE = "CC0-1.0"
Members = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class SynthReport:
    """What stands at the URL: `documents` in `files` (name -> sha256); `wrote` is False where it stood already."""

    url: str
    kind: SynthKind
    documents: int
    wrote: bool
    files: dict[str, str] = field(default_factory=dict)


def synthesise(
    url: str,
    documents: int,
    seed: int,
    kind: SynthKind = "captions",
    split: SynthSplit = "train",
    progress: Callable[[int], None] = lambda done: None,
    *,
    size: int = IMAGE_SIZE,
) -> SynthReport:
    """Writes `documents` of `kind` under `url` (any fsspec URL), or finds them there.

    `size` is the side of the pictures in pixels, a multiple of 64; scenes and texts do not depend on it.
    `progress` is told the documents done after each part. Raises UsageError where `url` holds documents of
    this kind made with other arguments: they are not overwritten.
    """
    _check(documents, kind, split, size)
    asked = {"format": FORMAT, "kind": kind, "documents": documents, "seed": seed, "split": split}
    if size != IMAGE_SIZE:
        asked["size"] = size
    manifest_url = join(url, f"{kind}.json")
    if exists(manifest_url):
        files = _standing(manifest_url, asked)
        return SynthReport(url, kind, documents, False, files)
    files = {}
    for part in range(-(-documents // PART_DOCUMENTS)):
        count = min(PART_DOCUMENTS, documents - part * PART_DOCUMENTS)
        for name, data in _part(kind, split, seed, part, count, size // IMAGE_SIZE).items():
            put_atomic(join(url, name), data)
            files[name] = hashlib.sha256(data).hexdigest()
        progress(part * PART_DOCUMENTS + count)
    write_json(manifest_url, {**asked, "licence": LICENCE, "files": files})
    return SynthReport(url, kind, documents, True, files)


def _check(documents: int, kind: str, split: str, size: int) -> None:
    if documents < 1:
        raise UsageError(f"--documents {documents}", "there is nothing to write", "ask for at least 1")
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}", "there is no such kind", f"known: {', '.join(KINDS)}")
    if split not in get_args(SynthSplit):
        raise UsageError(f"--split {split}", "there is no such split", "known: train, heldout")
    if size < IMAGE_SIZE or size % IMAGE_SIZE:
        raise UsageError(f"--size {size}", f"it is no multiple of {IMAGE_SIZE}", "try --size 128")


def _standing(manifest_url: str, asked: dict[str, Any]) -> dict[str, str]:
    found = {"size": IMAGE_SIZE, **read_json(manifest_url)}
    wanted = {"size": IMAGE_SIZE, **asked}
    differing = [f"{k}={found.get(k)} (asked: {v})" for k, v in wanted.items() if found.get(k) != v]
    if differing:
        raise UsageError(
            manifest_url,
            f"it holds documents made with {', '.join(differing)}",
            "choose another --out, or delete what is there",
        )
    files: dict[str, str] = found["files"]
    return files


def _part(
    kind: SynthKind, split: SynthSplit, seed: int, part: int, size: int, scale: int
) -> dict[str, bytes]:
    """The files of one part by name, images before the rows that point to them."""
    rng = np.random.default_rng([seed, KINDS.index(kind), part])
    keys = [f"{part * PART_DOCUMENTS + i:09d}" for i in range(size)]
    stem = f"{kind}-{part:05d}"
    if kind == "captions":
        return {
            f"{stem}.tar": _tar(m for key in keys for m in _pair(key, rng, _draw_split(rng, split), scale))
        }
    make = _question if kind == "vqa" else _story
    rows, members = zip(*(make(key, rng, _draw_split(rng, split), scale) for key in keys), strict=True)
    return {
        f"{stem}.tar": _tar(m for some in members for m in some),
        f"{stem}.jsonl": b"".join(map(_line, rows)),
    }


def _draw_split(rng: np.random.Generator, split: SynthSplit) -> Split:
    return "train" if split == "train" else SPLITS[1 + int(rng.integers(len(SPLITS) - 1))]


def _pair(key: str, rng: np.random.Generator, split: Split, scale: int) -> Members:
    scene = sample_in_split(rng, split)
    text, png = caption(scene, rng), _png(scene, scale)
    about = {
        "key": key,
        "url": f"shapes:{scene}",
        "caption": text,
        "licence": LICENCE,
        "width": IMAGE_SIZE * scale,
        "height": IMAGE_SIZE * scale,
        "sha256": hashlib.sha256(png).hexdigest(),
        "scene": str(scene),
        "split": split_of(scene),
    }
    return [(f"{key}.png", png), (f"{key}.txt", text.encode()), (f"{key}.json", _line(about))]


def _question(key: str, rng: np.random.Generator, split: Split, scale: int) -> tuple[dict[str, Any], Members]:
    scene = sample_in_split(rng, split)
    question, image = ask(scene, rng), f"{key}.png"
    row = {"id": key, "image": image, "question": question.text, "answer": question.answer}
    about = {"licence": LICENCE, "kind": question.kind, "scene": str(scene), "split": split}
    return row | about, [(image, _png(scene, scale))]


def _story(key: str, rng: np.random.Generator, split: Split, scale: int) -> tuple[dict[str, Any], Members]:
    story = sample_story(rng, split)
    images = [f"{key}-{i}.png" for i in range(len(story.scenes))]
    segments = [
        part
        for text, image in zip(story.texts, images, strict=True)
        for part in ({"text": text}, {"image": image})
    ]
    scenes = [str(scene) for scene in story.scenes]
    row = {"id": key, "segments": segments, "licence": LICENCE, "scenes": scenes, "split": split}
    return row, [(image, _png(scene, scale)) for image, scene in zip(images, story.scenes, strict=True)]


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _png(scene: Scene, scale: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(render(scene, scale)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(members: Iterator[tuple[str, bytes]]) -> bytes:
    """A plain ustar with the same bytes on every machine: no owner, no time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
