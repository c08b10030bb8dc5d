"""Collect garbage: remove, under a corpus root, what no manifest refers to.

Kept are: every version with a manifest (or, with `keep`, the newest of each corpus), the parts that these were made
of, what a live reader or builder holds (`holds`), and all that is younger than the grace period. A version goes
manifest first, so that a run that is stopped leaves nothing that a reader would take for a corpus.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from oneflow_core.data.manifest import LATEST_NAME, MANIFEST_NAME
from workflows.corpus.holds import BUILD, READ, collecting
from workflows.corpus.verify import load_manifest
from workflows.errors import OneFlowError
from workflows.leases import Survey, survey
from workflows.storage import delete, exists, explained, join, open_fs, read_bytes

PARTS = ("documents/", "hashes/", "images/", "latents/", "features/", "quarantine/")
VERSION = re.compile(r"shards/([^/]+)/([^/]+)/[^/]+")
OURS = re.compile(
    r"part-[^/]+\.parquet|batch[^/]*\.json|shard-\d+\.(tar|index\.(arrow|json))|manifest\.json"
    r"|(shards|inputs|parts)(-[^/]+)?\.parquet"
)
"""Names of what builds write; anything else in these folders was put there by somebody else."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
"""What `put_atomic` writes on a local disk before it renames it."""
YOUNG, BUILDING = "younger than the grace period", "a build is going on"
OVER, LEASE = "a lease that is over", "lease"
CHECK_EVERY = 20
"""Objects that are removed between two looks at the collector's own lease."""
LEASE_AGE_S = 86_400.0
"""A builder that was paused finds for so long that another one took over, whatever the grace period."""

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
    in any case, and so do versions that are read now, and while a corpus is being built its versions and all parts.

    Raises:
        OneFlowError: nothing is there, a manifest cannot be read, another collection is going on, or a store that
            fails.
    """
    if dry_run:
        plan, kept = _plan(root, keep, time.time() - grace_s)
        return GcReport(root, dry_run, tuple(plan), kept)
    with collecting(root) as lease:
        plan, kept = _plan(root, keep, time.time() - grace_s)
        for number, (item, _) in enumerate(plan):
            if number % CHECK_EVERY == 0:
                lease.check()
            delete(join(root, item.path))
    return GcReport(root, dry_run, tuple(plan), kept)


def _listed(root: str) -> Iterator[Stored]:
    """Objects of a corpus root; what else lies there is none of our business."""
    filesystem, base = open_fs(root)
    for folder in (*PARTS, "shards/", "leases/"):
        with explained(join(root, folder)):
            try:
                found = filesystem.find(join(base, folder), detail=True)
            except FileNotFoundError:
                continue
        for name, info in sorted(found.items()):
            path = name.removeprefix(base.rstrip("/")).lstrip("/")
            yield Stored(path, int(info["size"] or 0), written(info))


def _plan(root: str, keep: int | None, before: float) -> tuple[list[tuple[Stored, str]], Counter[str]]:
    """What is to go, in the order in which it goes, with why; and why the others stay."""
    leases = survey(root)
    stored = list(_listed(root))
    if not any(not item.path.startswith("leases/") for item in stored):
        raise OneFlowError(
            f"corpus root {root}", "nothing is there", "name the root of the config, not a corpus"
        )
    stay = _stay(root, stored, keep, leases, before)
    parts = {part.path for version, why in stay.items() if why for part in _parts(root, version)}
    plan: list[tuple[Stored, str]] = []
    kept: Counter[str] = Counter()
    for item in stored:
        stays, goes = _fate(item, stay, parts, leases)
        if stays == LEASE:
            continue
        if stays or (item.written > before and goes != OVER):
            kept[stays or YOUNG] += 1
        else:
            plan.append((item, goes))
    return sorted(plan, key=lambda found: not found[0].path.endswith(f"/{MANIFEST_NAME}")), kept


def _fate(item: Stored, stay: Mapping[Version, str], parts: Set[str], leases: Survey) -> tuple[str, str]:
    """Why an object stays, empty if it may go; and why it goes then."""
    name = item.path.rpartition("/")[2]
    if TEMPORARY.fullmatch(name):
        return "", "a writer that was killed left it"
    if item.path.startswith("leases/"):
        if name in leases.ended:
            return "", OVER
        old = name in leases.succeeded and item.written < time.time() - LEASE_AGE_S
        return "" if old else LEASE, "a lease that has a successor"
    match = VERSION.fullmatch(item.path)
    if not match and not item.path.startswith(PARTS):
        return "pointer", ""
    if not OURS.fullmatch(name):
        return "not written by a build", ""
    if match:
        return stay[match[1], match[2]], "no manifest, or a version that is not to be kept"
    if item.path in parts:
        return "part of a version", ""
    return BUILDING if _built(leases) else "", "no manifest refers to it"


def _built(leases: Survey) -> set[str]:
    """Names of the corpora that are being built now."""
    return {name.removeprefix(BUILD) for name in leases.live if name.startswith(BUILD)}


def _stay(
    root: str, stored: Sequence[Stored], keep: int | None, leases: Survey, before: float
) -> dict[Version, str]:
    """Why each version stays; empty for one that may go."""
    written: dict[Version, float | None] = {}
    for item in stored:
        if match := VERSION.fullmatch(item.path):
            written.setdefault((match[1], match[2]), None)
            if item.path.endswith(f"/{MANIFEST_NAME}"):
                written[match[1], match[2]] = item.written
    latest = {name: _latest(root, name) for name, _ in written}
    for version in [*written, *((name, pointed) for name, pointed in latest.items() if pointed)]:
        # A listing may be behind; what it does not show is asked for by name.
        if written.get(version) is None and exists(join(root, "shards", *version, MANIFEST_NAME)):
            written[version] = time.time()
    return {version: _why(version, written, latest[version[0]], keep, leases, before) for version in written}


def _why(
    version: Version,
    written: Mapping[Version, float | None],
    latest: str,
    keep: int | None,
    leases: Survey,
    before: float,
) -> str:
    own = written[version]
    if own is None:
        return BUILDING if version[0] in _built(leases) else ""
    if version[1] == latest:
        return "latest version"
    if any(name.startswith(f"{READ}{version[0]}-{version[1]}-") for name in leases.live):
        return "a reader holds it"
    newer = sum(other[0] == version[0] and (at or 0) > own for other, at in written.items())
    if keep is None or newer < keep:
        return "version"
    if own > before:
        return YOUNG
    return BUILDING if version[0] in _built(leases) else ""


def _latest(root: str, name: str) -> str:
    url = join(root, "shards", name, LATEST_NAME)
    return read_bytes(url).decode().strip() if exists(url) else ""


def _parts(root: str, version: Version) -> Sequence[Any]:
    url = join(root, "shards", *version)
    # While it is being built it stays without one.
    return load_manifest(url).parts if exists(join(url, MANIFEST_NAME)) else ()


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
