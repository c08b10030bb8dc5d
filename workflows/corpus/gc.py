"""Collect garbage: remove, under a corpus root, what no manifest refers to.

Kept are: every version with a manifest (or, with `keep`, the newest of each corpus), the parts that these were made
of, what a live reader or builder holds, and all that is younger than the grace period. A version goes manifest
first, so that a run that is stopped leaves nothing that a reader would take for a corpus.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from oneflow_core.data.manifest import LATEST_NAME, MANIFEST_NAME
from workflows.corpus.verify import load_manifest
from workflows.errors import OneFlowError
from workflows.storage import delete, exists, explained, join, open_fs, read_bytes

PARTS = ("documents/", "hashes/", "latents/", "features/", "quarantine/")
VERSION = re.compile(r"shards/([^/]+)/([^/]+)/[^/]+")
YOUNG = "younger than the grace period"

Version = tuple[str, str]
"""Name of a corpus, and version."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object under the root: its path below it, bytes, and when it was written (seconds of the store's clock)."""

    path: str
    size: int
    written: float


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was removed (or would be, with `dry_run`), with why; and how many objects stayed, by reason."""

    root: str
    dry_run: bool
    removed: tuple[tuple[Stored, str], ...]
    kept: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Bytes that this frees."""
        return sum(stored.size for stored, _ in self.removed)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "root": self.root,
            "dry_run": self.dry_run,
            "removed": len(self.removed),
            "bytes": self.bytes,
            "kept": dict(self.kept),
            "objects": [{"path": s.path, "bytes": s.size, "why": why} for s, why in self.removed],
        }


def collect(
    root: str, *, dry_run: bool = False, grace_s: float = 86_400, keep: int | None = None
) -> GcReport:
    """Remove what nothing under `root` refers to and is older than `grace_s` seconds.

    `keep` is how many versions of each corpus stay, the newest; None: all of them. The one that `latest` names stays
    in any case.

    Raises:
        OneFlowError: nothing is there, a manifest cannot be read, a build is going on, or a store that fails.
    """
    stored = list(_listed(root))
    if not stored:
        raise OneFlowError(
            f"corpus root {root}", "nothing is there", "name the root of the config, not a corpus"
        )
    plan, kept = _plan(root, stored, keep, time.time() - grace_s)
    for item, _ in () if dry_run else plan:
        delete(join(root, item.path))
    return GcReport(root, dry_run, tuple(plan), kept)


def _listed(root: str) -> Iterator[Stored]:
    """Objects of a corpus root; what else lies there is none of our business."""
    filesystem, base = open_fs(root)
    for folder in (*PARTS, "shards/"):
        with explained(join(root, folder)):
            try:
                found = filesystem.find(join(base, folder), detail=True)
            except FileNotFoundError:
                continue
        for name, info in sorted(found.items()):
            path = name.removeprefix(base.rstrip("/")).lstrip("/")
            yield Stored(path, int(info["size"] or 0), written(info))


def _plan(
    root: str, stored: Sequence[Stored], keep: int | None, before: float
) -> tuple[list[tuple[Stored, str]], Counter[str]]:
    """What is to go, in the order in which it goes, with why; and why the others stay."""
    stay = _stay(root, stored, keep)
    parts = {part.path for version, why in stay.items() if why for part in _parts(root, version)}
    plan: list[tuple[Stored, str]] = []
    kept: Counter[str] = Counter()
    for item in stored:
        if match := VERSION.fullmatch(item.path):
            stays, goes = stay[match[1], match[2]], "no manifest, or a version that is not to be kept"
        elif item.path.startswith(PARTS):
            stays, goes = "part of a version" if item.path in parts else "", "no manifest refers to it"
        else:
            stays, goes = "pointer", ""
        if stays or item.written > before:
            kept[stays or YOUNG] += 1
        else:
            plan.append((item, goes))
    return sorted(plan, key=lambda found: not found[0].path.endswith(f"/{MANIFEST_NAME}")), kept


def _stay(root: str, stored: Sequence[Stored], keep: int | None) -> dict[Version, str]:
    """Why each version stays; empty for one that may go."""
    written: dict[Version, float | None] = {}
    for item in stored:
        if match := VERSION.fullmatch(item.path):
            written.setdefault((match[1], match[2]), None)
            if item.path.endswith(f"/{MANIFEST_NAME}"):
                written[match[1], match[2]] = item.written
    latest = {name: _latest(root, name) for name, _ in written}
    return {version: _why(version, written, latest[version[0]], keep) for version in written}


def _why(version: Version, written: Mapping[Version, float | None], latest: str, keep: int | None) -> str:
    own = written[version]
    if own is None:
        return ""
    if version[1] == latest:
        return "latest version"
    newer = sum(other[0] == version[0] and (at or 0) > own for other, at in written.items())
    return "version" if keep is None or newer < keep else ""


def _latest(root: str, name: str) -> str:
    url = join(root, "shards", name, LATEST_NAME)
    return read_bytes(url).decode().strip() if exists(url) else ""


def _parts(root: str, version: Version) -> Sequence[Any]:
    return load_manifest(join(root, "shards", *version)).parts


def written(info: Mapping[str, Any]) -> float:
    """When an object was written, in seconds of the store's clock, by its entry in a listing."""
    for key in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    # What does not tell its age is never sure to be old.
    return time.time()
