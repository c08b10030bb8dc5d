"""Verify: a sharded corpus against its manifest, by digests; deep: every sample of it."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from oneflow_core.data.manifest import LATEST_NAME, LISTS, MANIFEST_NAME, Manifest, ManifestError
from oneflow_core.data.reader import index_url
from oneflow_core.data.table import Table
from workflows.corpus.progress import Progress
from workflows.corpus.shard_check import check_shard, is_missing
from workflows.errors import OneFlowError, Refused
from workflows.storage import exists, explained, join, open_fs, read_bytes, sha256

SHARDS_AT_ONCE = 4
PROBLEMS_TOLD = 5
MEND = "build it again with oneflow corpus build"


class Unsound(Refused):
    """A corpus that does not hold what its manifest says; `problems` are all that were found."""

    def __init__(self, url: str, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - PROBLEMS_TOLD} more)" if len(problems) > PROBLEMS_TOLD else ""
        super().__init__(f"corpus {url}", "; ".join(problems[:PROBLEMS_TOLD]) + more, MEND)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found to hold: `samples` were opened one by one if `deep`, else counted by the indexes.

    `strangers` are the names of files in the version's directory that belong to nothing there: no reader minds them.
    """

    manifest: Manifest
    deep: bool
    samples: int
    strangers: tuple[str, ...]
    seconds: float

    @property
    def mb_s(self) -> float:
        """Megabytes of shards a second."""
        return self.manifest.totals.bytes / 1e6 / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = self.manifest
        return {
            "url": found.base,
            "version": found.version,
            "shards": len(found.shards),
            "samples": self.samples,
            "deep": self.deep,
            "strangers": list(self.strangers),
            "seconds": round(self.seconds, 3),
            "mb_s": round(self.mb_s, 1),
            "ok": True,
            "problems": [],
        }


def load_manifest(url: str) -> Manifest:
    """The manifest at `url`.

    Raises:
        OneFlowError: there is none.
        Refused: it is there, but not valid; or `latest` names a version that is not there.
    """
    open_fs(url)
    try:
        with explained(url):
            return Manifest.load(url)
    except ManifestError as error:
        raise Unsound(url, [str(error)]) from None
    except OneFlowError as error:
        if not is_missing(error):
            raise
        if exists(join(url, LATEST_NAME)) and not url.endswith(".json"):
            raise Unsound(url, [f"{LATEST_NAME}: the version that it names is not there"]) from None
        raise OneFlowError(
            f"corpus {url}", str(error.__cause__), "name the directory that oneflow corpus build told"
        ) from None


def verify(url: str, deep: bool = False) -> VerifyReport:
    """Hold every shard of the corpus at `url` against its manifest.

    Raises:
        OneFlowError: no corpus there.
        Unsound: something does not hold; all problems are told.
    """
    begin = time.monotonic()
    manifest = load_manifest(url)
    progress = Progress("verify", len(manifest.shards), "shards")
    if problems := [*_pointer(url, manifest), *_lists(manifest)]:
        # What shards there are is not known for sure.
        raise Unsound(manifest.base, problems)
    problems = list(_contents(manifest))
    seen = Counter[str]()
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        for found, counts in pool.map(partial(check_shard, manifest, deep), manifest.shards):
            problems += found
            seen.update(counts)
            progress.add(1)
    if deep and not problems:
        problems += _sums(manifest, seen)
    if problems:
        raise Unsound(manifest.base, problems)
    report = VerifyReport(manifest, deep, seen["samples"], _strangers(manifest), time.monotonic() - begin)
    progress.finish(f"all as the manifest says, {report.mb_s:,.0f} MB/s")
    return report


def _pointer(url: str, manifest: Manifest) -> Iterator[str]:
    """What is wrong with `latest`, where the manifest was found through it."""
    base, _, version = manifest.base.rpartition("/")
    if url.rstrip("/") != base:
        return
    if manifest.version != version:
        yield f"{LATEST_NAME}: names {version}, where the manifest of {manifest.version} lies"
    if not re.fullmatch(rb"[\w.-]+\n", read_bytes(join(base, LATEST_NAME))):
        yield f"{LATEST_NAME}: is not the name of a version and a newline"


def _lists(manifest: Manifest) -> Iterator[str]:
    """The manifest's own bytes, and the lists beside it."""
    if read_bytes(join(manifest.base, MANIFEST_NAME)) != manifest.to_bytes():
        yield f"{MANIFEST_NAME}: was written by something else"
    for name, file in manifest.lists.items():
        try:
            data = read_bytes(join(manifest.base, file.file_name(name)))
        except OneFlowError as error:
            if not is_missing(error):
                raise
            yield f"{file.file_name(name)}: {error.cause}"
            continue
        if sha256(data) != file.sha256:
            yield f"{file.file_name(name)}: another digest"
        elif Table.of_bytes(LISTS[name], data) != getattr(manifest, name):
            yield f"{file.file_name(name)}: is not the list that the manifest has"


def _contents(manifest: Manifest) -> Iterator[str]:
    """A shard that stands twice, parts of other encoders than the manifest names, images without any."""
    if len({entry.name for entry in manifest.shards}) != len(manifest.shards):
        yield f"{MANIFEST_NAME}: names a shard twice"
    for kind, model in (("latents", manifest.codec), ("features", manifest.encoder)):
        used = {p.path.split("/")[1] for p in manifest.parts if p.path.startswith(f"{kind}/")}
        for other in sorted(used - {model}):
            yield f"{MANIFEST_NAME}: was made of {kind} by {other}, and says that they are by {model}"
    if manifest.totals.images and manifest.codec is None:
        yield f"{MANIFEST_NAME}: has {manifest.totals.images} images, and no codec"


def _strangers(manifest: Manifest) -> tuple[str, ...]:
    """Files in the version's directory that neither the manifest nor its lists name."""
    filesystem, path = open_fs(manifest.base)
    with explained(manifest.base):
        there = {name.rstrip("/").rpartition("/")[2] for name in filesystem.ls(path, detail=False)}
    there -= {MANIFEST_NAME, *(file.file_name(name) for name, file in manifest.lists.items())}
    for entry in manifest.shards:
        there -= {entry.name, index_url(entry.name)}
    return tuple(sorted(there))


def _sums(manifest: Manifest, seen: Counter[str]) -> Iterator[str]:
    for licence, count in manifest.licences.items():
        if seen[f"licence {licence}"] != count:
            yield f"{seen[f'licence {licence}']} samples under {licence}, {count} are meant"
    for source, account in manifest.accounts.items():
        if seen[f"source {source}"] != account.kept:
            yield f"{seen[f'source {source}']} samples of {source}, {account.kept} are meant"
