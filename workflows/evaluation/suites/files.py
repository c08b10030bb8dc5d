"""Files of a benchmark, read whole by path or fsspec URL; errors say which is missing and whence it comes."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows import storage
from workflows.errors import UsageError
from workflows.evaluation.suites.config import DataConfig

WHENCE = {
    "captions": "COCO's captions: annotations_trainval2014.zip from cocodataset.org, or Karpathy's dataset_coco.json",
    "images": "the pictures of the benchmark, e.g. val2014.zip from cocodataset.org, unpacked into a directory",
    "prompts": "a file of prompts (.txt, .jsonl, .csv or .tsv), e.g. PartiPrompts.tsv of google-research/parti",
    "questions": "dpg_bench.csv of TencentQQGYLab/ELLA, or a questions file of VQAv2, TextVQA, VizWiz or GQA",
    "annotations": "the annotations file that belongs to the questions, e.g. v2_mscoco_val2014_annotations.json",
    "metadata": "prompts/evaluation_metadata.jsonl of djghosh13/geneval",
    "references": "a directory of real pictures, e.g. COCO's val2014, or an .npz that FeatureStatistics.save wrote",
}
"""What to put into each of the config's `data` fields, and where it is had."""
SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".JPEG", ".PNG")
SENT = {"PNG", "JPEG", "WEBP"}
"""Formats that a deployment reads."""
SENT_MODES = {"RGB", "L", "RGBA", "P"}


@dataclass(frozen=True, slots=True)
class File:
    """A file of the config's `data`, read whole."""

    field: str
    url: str
    data: bytes

    @property
    def rule(self) -> dict[str, Any]:
        """What of it decides figures; the place does not."""
        return {"sha256": storage.sha256(self.data), "bytes": len(self.data)}

    def text(self) -> str:
        """As UTF-8; UsageError for another file."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.refused(f"it is no UTF-8 text: {error}") from None

    def json(self) -> Any:
        """As JSON; UsageError for another file."""
        try:
            return json.loads(self.text())
        except ValueError as error:
            raise self.refused(f"it is no JSON: {error}") from None

    def refused(self, cause: str) -> UsageError:
        """The error to raise for a file of another layout."""
        return UsageError(f"data.{self.field} {self.url}", cause, f"give {WHENCE[self.field]}")


def needed(field: str, url: str | None, suite: str) -> str:
    """`url`; UsageError where the config does not say it."""
    if not url:
        raise UsageError(
            f"suite {suite}",
            f"data.{field} is not set",
            f"get {WHENCE[field]}, and name it with --set data.{field}=PATH",
        )
    return url


def read(field: str, url: str | None, suite: str) -> File:
    """The file that `data.<field>` names; UsageError where none is named or none is there."""
    where = needed(field, url, suite)
    if not storage.exists(where):
        raise UsageError(f"data.{field} {where}", "there is no such file", f"get {WHENCE[field]}")
    return File(field, where, storage.read_bytes(where))


class Pictures:
    """A directory of pictures, listed once, in which names of datasets are looked up."""

    def __init__(self, field: str, url: str | None, suite: str) -> None:
        """Lists the directory; UsageError where there is none, or nothing in it."""
        self.field, self.url = field, needed(field, url, suite)
        found = storage.list_urls(self.url) if storage.exists(self.url) else []
        self.urls = [one for one in found if one.endswith(SUFFIXES)]
        """Of all pictures, sorted, in directories below too."""
        self._urls: dict[str, list[str]] = defaultdict(list)
        for one in self.urls:
            self._urls[PurePosixPath(one).name].append(one)
        if not self.urls:
            raise UsageError(f"data.{field} {self.url}", "no pictures are there", f"get {WHENCE[field]}")

    def find(self, name: str) -> str | None:
        """The URL of a picture that a dataset calls `name`: as it is, with a suffix, or in COCO's manner.

        UsageError where two directories hold one of that name.
        """
        stems = [PurePosixPath(name).name]
        if name.isdigit():
            stems += [
                f"{int(name):012d}",
                *(f"COCO_{part}2014_{int(name):012d}" for part in ("val", "train")),
            ]
        files = [f"{stem}{suffix}" for stem in stems for suffix in ("", *SUFFIXES)]
        urls: list[str] = next((self._urls[file] for file in files if file in self._urls), [])
        if len(urls) > 1:
            cause = f"picture {name} is there twice, as {urls[0]} and {urls[1]}"
            raise UsageError(f"data.{self.field} {self.url}", cause, "name the directory of one split")
        return urls[0] if urls else None

    def all_of(self, names: Iterable[str], allow_missing: bool) -> tuple[dict[str, str], list[str]]:
        """Name -> URL, and names without one; UsageError where some lack and `allow_missing` is not set."""
        files = {name: self.find(name) for name in names}
        missing = [name for name, file in files.items() if file is None]
        if missing and (not allow_missing or len(missing) == len(files)):
            raise UsageError(
                f"data.{self.field} {self.url}",
                f"picture {missing[0]} is not there, nor are {len(missing) - 1} more of {len(files)}",
                f"get {WHENCE[self.field]}, or set data.allow_missing=true to leave them out",
            )
        return {name: file for name, file in files.items() if file is not None}, missing


@dataclass(frozen=True, slots=True)
class Shown:
    """Pictures by name as a deployment takes them, why others are not there, and a digest of all that are."""

    pictures: dict[str, bytes]
    refused: dict[str, str]
    sha256: str


def shown(pictures: Pictures, names: Iterable[str], data: DataConfig) -> Shown:
    """The pictures of `names`, read; UsageError where some lack and `data.allow_missing` is not set."""
    urls, missing = pictures.all_of(names, data.allow_missing)
    refused, held = dict.fromkeys(missing, "its picture is not there"), dict[str, bytes]()
    for name, url in urls.items():
        try:
            held[name] = sendable(storage.read_bytes(url), data.longest_side)
        except ValueError as error:
            refused[name] = str(error)
    digests = "".join(storage.sha256(one) for one in held.values())
    return Shown(held, refused, storage.sha256(digests.encode()))


def sendable(data: bytes, longest: int) -> bytes:
    """A picture file as a deployment takes it: as it is, or shrunk or converted, then as PNG.

    Raises:
        ValueError: it is no picture.
    """
    from PIL import Image

    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"no picture can be read from it ({type(error).__name__}: {error})") from None
    if opened.format in SENT and opened.mode in SENT_MODES and max(opened.size) <= longest:
        return data
    image = opened.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    """A picture file as uint8 [H, W, 3].

    Raises:
        ValueError: it is no picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"no picture can be read from it ({type(error).__name__}: {error})") from None


def square(image_HWC: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """The centred square, resized to `side` by PIL's bicubic; None leaves the picture as it is."""
    from PIL import Image

    height, width = image_HWC.shape[:2]
    if side is None or (height, width) == (side, side):
        return image_HWC
    extent = min(height, width)
    top, left = (height - extent) // 2, (width - extent) // 2
    cut = Image.fromarray(image_HWC[top : top + extent, left : left + extent])
    return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))


def chosen(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """`limit` of the names, drawn by the seed, in their order; all where it is None or not reached."""
    held = list(names)
    if limit is None or limit >= len(held):
        return held
    taken = np.random.default_rng(seed).choice(len(held), limit, replace=False)
    return [held[place] for place in sorted(taken)]


def seed_of(seed: int, name: str) -> int:
    """The seed of an item's generation: of the suite's seed and the item's name alone."""
    return int(storage.sha256(f"{seed}/{name}".encode())[:8], 16) >> 1
