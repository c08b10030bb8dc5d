"""Decoded megabytes per CPU-second of our reader, beside webdataset, tarfile, litdata and MosaicML's MDS.

All sides read the same samples to the same arrays and JSON, each in a process of its own; only ours checks digests. A
pass is timed by the CPU of its process, threads and children. The figure is that of all kinds of documents together,
each kind read whole; `kinds` tells them apart, and `least` is the worst kind's ratio.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from workflows.bench import data_wait, peers
from workflows.bench.child import Child
from workflows.bench.loader_corpus import KINDS, Kind, write_corpus
from workflows.bench.loader_sides import BUCKET
from workflows.bench.result import Result
from workflows.errors import OneFlowError

PINS = Path(__file__).with_name("peers_loader.txt")
SIDES = {"ours": "ours", "webdataset": "webdataset", "tarfile": "plain_tarfile"}
PEERS = {"litdata": "litdata", "mosaicml-streaming": "streaming"}
DOCUMENTS, STEPS = 2000, 60
WAYS = {
    "sequential": ("ours", "webdataset", "tarfile", "litdata", "mosaicml-streaming"),
    "shuffled": ("ours", "webdataset", "litdata", "mosaicml-streaming"),
    "s3": ("ours", "webdataset", "tarfile", "litdata", "mosaicml-streaming"),
}
Rates = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
"""way -> side -> kind -> seconds of each run."""


def run(runs: int) -> Result:
    """`ratio_to_webdataset`, `ratio_to_best`; with `_shuffled` and in front `s3_` for the other ways."""
    return measure(runs, KINDS, peers.install(pins=PINS), STEPS)


def measure(runs: int, kinds: Mapping[str, Kind], place: Path | None, steps: int, s3: bool = True) -> Result:
    """`place` is where the peers' packages are; None leaves these peers out. `s3` asks for the ways over a store.

    `data_wait` is of `steps` steps (0: left out) of the demo's training, of which the first half is left out.
    """
    with tempfile.TemporaryDirectory(prefix="oneflow-bench-") as made, ExitStack() as stack:
        root = Path(made)
        for name, kind in kinds.items():
            write_corpus(root / name, name, kind)
        prefix = stack.enter_context(_store(root)) if s3 else None
        sides = stack.enter_context(_sides(root, list(kinds), place, prefix))
        ways = {way: [s for s in names if s in sides] for way, names in WAYS.items() if way != "s3" or s3}
        sizes = _checked(sides, ways, list(kinds))
        seconds = _timed(sides, ways, list(kinds), runs)
        stack.close()
        trained = data_wait.measure(root / "training", DOCUMENTS, steps) if steps else {}
    return _result(seconds, sizes, trained)


def _timed(sides: Mapping[str, Child], ways: Mapping[str, list[str]], kinds: list[str], runs: int) -> Rates:
    """Sides in turn, so that what else the machine does falls on all."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {
        way: {side: {kind: [] for kind in kinds} for side in names} for way, names in ways.items()
    }
    for _ in range(runs):
        for way, names in ways.items():
            for kind in kinds:
                for side in names:
                    found[way][side][kind].append(sides[side].ask(kind=kind, how=way)["seconds"])
    return found


def _checked(sides: Mapping[str, Child], ways: Mapping[str, list[str]], kinds: list[str]) -> dict[str, int]:
    """Bytes of each kind's arrays, after all sides were seen to read the same samples."""
    sizes = {}
    for kind in kinds:
        wanted = sides["ours"].ask(kind=kind, how="sequential", check=True)
        for way, names in ways.items():
            for side in names:
                if (told := sides[side].ask(kind=kind, how=way, check=True)) != wanted:
                    cause = f"{side} reads other samples of {kind} ({way}): {told}, not {wanted}"
                    raise OneFlowError("benchmark loader", cause, "see its version in the pins")
        sizes[kind] = sides["ours"].ask(kind=kind, how="sequential")["bytes"]
    return sizes


def _result(seconds: Rates, sizes: Mapping[str, int], trained: Mapping[str, float]) -> Result:
    """Rates of all kinds together, and of each."""
    rates = {
        way: {
            side: [sum(sizes.values()) / 1e6 / sum(run) for run in zip(*held.values(), strict=True)]
            for side, held in sides.items()
        }
        for way, sides in seconds.items()
    }
    extra: dict[str, Any] = dict(trained)
    for way, sides in rates.items():
        before, after = ("s3_", "") if way == "s3" else ("", "" if way == "sequential" else f"_{way}")
        others = {side: median(runs) for side, runs in sides.items() if side != "ours"}
        mine, best = median(sides["ours"]), max(others, key=lambda side: others[side])
        extra[f"{before}ratio_to_webdataset{after}"] = mine / others["webdataset"]
        extra[f"{before}ratio_to_best{after}"] = mine / others[best]
        extra[f"{before}best{after}"] = best
    extra["least"] = _least(seconds)
    extra["kinds"] = {
        way: {side: _rates(held, sizes) for side, held in sides.items()} for way, sides in seconds.items()
    }
    flat = {f"{way} {side}": runs for way, sides in rates.items() for side, runs in sides.items()}
    ours, peer = flat["sequential ours"], flat["sequential webdataset"]
    packages = ("webdataset", "numpy", "xxhash", "fsspec", "s3fs", "pyarrow")
    return Result("loader", "decoded MB per CPU-second", ours, peer, packages, extra, flat)


def _rates(held: Mapping[str, list[float]], sizes: Mapping[str, int]) -> dict[str, float]:
    return {kind: sizes[kind] / 1e6 / median(runs) for kind, runs in held.items()}


def _least(seconds: Rates) -> dict[str, float]:
    """The worst kind's ratio to webdataset, and to the best other of that kind, by way."""
    found = {}
    for way, sides in seconds.items():
        costs = {side: {kind: median(runs) for kind, runs in held.items()} for side, held in sides.items()}
        others = [side for side in costs if side != "ours"]
        mine = costs["ours"]
        found[f"{way}_to_webdataset"] = min(costs["webdataset"][kind] / mine[kind] for kind in mine)
        found[f"{way}_to_best"] = min(min(costs[side][kind] for side in others) / mine[kind] for kind in mine)
    return found


@contextmanager
def _sides(
    root: Path, kinds: list[str], place: Path | None, prefix: str | None
) -> Iterator[dict[str, Child]]:
    """A child for each side, which knows where its copies lie."""
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(
                Child(f"workflows.bench.loader_sides:{target}", {"places": _places(root, kinds, "", prefix)})
            )
            for side, target in SIDES.items()
        }
        for side, target in PEERS.items() if place else ():
            assert place is not None
            for kind in kinds:
                with Child("workflows.bench.loader_sides:Writer", {"side": target}, [place]) as writer:
                    writer.ask(source=str(root / kind), place=str(root / f"{target}-{kind}"))
                if prefix:
                    _upload(root / f"{target}-{kind}", f"{prefix}/{target}-{kind}")
            arguments = {"places": _places(root, kinds, f"{target}-", prefix)}
            sides[side] = stack.enter_context(
                Child(f"workflows.bench.loader_sides:{target}", arguments, [place])
            )
        yield sides


def _places(root: Path, kinds: list[str], before: str, prefix: str | None) -> dict[str, dict[str, str]]:
    local = {kind: str(root / f"{before}{kind}") for kind in kinds}
    return {"local": local, "s3": {kind: f"{prefix}/{before}{kind}" for kind in kinds} if prefix else {}}


@contextmanager
def _store(root: Path) -> Iterator[str]:
    """A prefix on S3 with copies of all corpora below `root`; on a server of its own where none is running."""
    from workflows import storage
    from workflows.stack import StackConfig, connect, down, up
    from workflows.stack.config import MlflowConfig, RayConfig

    own = root / "stack" if "AWS_ENDPOINT_URL" not in os.environ else None
    before = dict(os.environ)
    if own:
        off = {"mlflow": MlflowConfig(enabled=False), "ray": RayConfig(enabled=False)}
        up(StackConfig(**off), own)
        connect(own)
    prefix = f"s3://{BUCKET}/bench/{root.name}"
    try:
        for directory in [path for path in root.iterdir() if path != own]:
            _upload(directory, f"{prefix}/{directory.name}")
        yield prefix
    finally:
        storage.delete(prefix, recursive=True)
        if own:
            down(own, purge=True)
            os.environ.clear()
            os.environ.update(before)


def _upload(directory: Path, url: str) -> None:
    from workflows import storage

    for path in sorted(directory.rglob("*")):
        if path.is_file():
            storage.put_atomic(f"{url}/{path.relative_to(directory)}", path.read_bytes())
