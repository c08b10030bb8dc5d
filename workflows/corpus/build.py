"""Build: ingest, encode, shard, one after the other; or nothing at all, told within seconds."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from oneflow_core.data.manifest import Account, Manifest, ManifestError
from oneflow_core.data.reader import index_url
from workflows.corpus import encode, ingest, ingested, shard
from workflows.corpus.cluster import cluster
from workflows.corpus.config import CorpusConfig
from workflows.corpus.models import Models
from workflows.corpus.parts import list_parts
from workflows.corpus.units import Unit, list_units
from workflows.storage import explained, join, open_fs

Stage = Literal["ingest", "encode", "shard"]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: `made` is False where there was nothing to do. `manifest` is there once shards are."""

    made: bool
    manifest: Manifest | None
    seconds: Mapping[str, float]
    """By stage; those that did not run are absent."""
    done: Mapping[str, int] = field(default_factory=dict)
    """How many files, documents, images, shards were made now."""
    reused: Mapping[str, int] = field(default_factory=dict)
    """How many of each had been made before."""
    cleaned: int | None = None
    """Texts that clean-up changed; None where ingest did not run."""
    ingested: Mapping[str, Account] = field(default_factory=dict)
    """By source what ingest read, kept and refused; empty where it did not run."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = self.manifest
        told: dict[str, Any] = {
            "made": self.made,
            "seconds": {k: round(v, 2) for k, v in self.seconds.items()},
            "done": dict(self.done),
            "reused": dict(self.reused),
        }
        if self.cleaned is not None:
            told["cleaned"] = self.cleaned
            told["ingested"] = {source: asdict(account) for source, account in self.ingested.items()}
        if found is not None:
            told |= {"url": found.base, "name": found.name, "version": found.version, "codec": found.codec}
            told |= {
                "samples": found.totals.samples,
                "images": found.totals.images,
                "bytes": found.totals.bytes,
            }
            told |= {"shards": len(found.shards), "encoder": found.encoder}
            told |= {"refused": {s: dict(a.refused) for s, a in found.accounts.items()}}
        return told

    def what(self) -> str:
        """For people: what was made now, and what had been before."""
        words = {"files": "ingested", "images": "encoded", "shards": "written"}
        return "; ".join(
            f"{word} {self.done[name]:,} {name}, {self.reused[name]:,} reused"
            for name, word in words.items()
            if name in self.done
        )


def run(config: CorpusConfig, stage: Stage | None = None) -> BuildReport:
    """Run one stage, or all three in one Ray session; what was done before is not done again.

    Raises:
        OneFlowError: a source with no input, storage or a cluster that fails, a stage run before the one it needs.
    """
    begin = time.monotonic()
    manifest = finished(config)
    if manifest is not None:
        reused = {"files": len(manifest.inputs), "documents": manifest.totals.samples}
        reused |= {"images": manifest.totals.images, "shards": len(manifest.shards)}
        return BuildReport(False, manifest, {"check": time.monotonic() - begin}, reused=reused)
    seconds: dict[str, float] = {}
    done: dict[str, int] = {}
    reused = {}
    cleaned, accounts = None, dict[str, Account]()
    models: Models | None = None
    with cluster() if stage is None else nullcontext():
        if stage in (None, "ingest"):
            found = ingest.run(config)
            seconds["ingest"], cleaned = found.seconds, sum(unit.cleaned for unit in found.units)
            accounts = ingest.accounts(found.units)
            done |= {"files": found.made, "documents": sum(a.kept for a in accounts.values()) - found.reused}
            reused |= {"files": len(found.units) - found.made, "documents": found.reused}
        if stage in (None, "encode"):
            encoded = encode.run(config)
            seconds["encode"], models = encoded.seconds, (encoded.codec, encoded.encoder)
            done["images"], reused["images"] = encoded.encoded, encoded.reused
        if stage in (None, "shard"):
            sharded = shard.run(config, models)
            seconds["shard"], manifest = sharded.seconds, Manifest.load(sharded.url)
            done["shards"], reused["shards"] = len(manifest.shards) - sharded.reused, sharded.reused
    return BuildReport(True, manifest, seconds, done, reused, cleaned, accounts)


def finished(config: CorpusConfig) -> Manifest | None:
    """The manifest that `latest` points at, if this config over the inputs as now listed is what made it.

    Told by listings and digests alone: no input is read, no Ray started.
    """
    url = join(config.root, "shards", config.name)
    units = list_units(config)
    with explained(url):
        manifest = _latest(url)
    if manifest is None:
        return None
    listed = [(u.source, u.name, u.size, u.etag) for u in units]
    made_of = [(i.source, i.name, i.size, i.etag) for i in manifest.inputs]
    same = manifest.created_by["config_digest"] == config.digest() and made_of == listed
    return manifest if same and _whole(manifest) and not _retried(config, units, manifest) else None


def _latest(url: str) -> Manifest | None:
    try:
        return Manifest.load(url)
    except FileNotFoundError:
        # Tells a bucket that does not exist now, not when the first part is to be written.
        list_parts(url)
    except ManifestError:
        pass
    return None


def _retried(config: CorpusConfig, units: Sequence[Unit], manifest: Manifest) -> bool:
    """Whether a retry of what was refused gave other documents since, or refusals were taken back to be tried again."""
    there, made_of = ingested.stored(config), {part.path for part in manifest.parts}
    found = (there.get((unit.source, ingested.part_of(config, unit))) for unit in units)
    refused = {path for path in made_of if path.startswith("quarantine/")}
    folders = {path.rpartition("/")[0] for path in refused}
    left = {url for folder in folders for url in list_parts(config.root, folder).values()}
    return any(part and _below(config, part[1]) not in made_of for part in found) or not refused <= {
        _below(config, url) for url in left
    }


def _below(config: CorpusConfig, url: str) -> str:
    return url.removeprefix(config.root).lstrip("/")


def _whole(manifest: Manifest) -> bool:
    """Whether every shard and index is there, a shard in its size."""
    filesystem, path = open_fs(manifest.base)
    with explained(manifest.base):
        sizes = {e["name"].rpartition("/")[2]: e["size"] for e in filesystem.ls(path, detail=True)}
    return all(sizes.get(s.name) == s.bytes and index_url(s.name) in sizes for s in manifest.shards)
