"""The sides of the loader's benchmark: readers of the same samples, each in a process of its own.

A side gives every sample as its JSON and its arrays. What is timed is a pass over all of them; what is not timed is a
pass in which they are digested, so that all sides can be held to have read the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflows.bench.loader_corpus import read_plainly

Read = tuple[Any, Sequence[np.ndarray]]
Pass = Callable[[str], Iterator[Read]]
"""Reads the corpus at a place: a local directory with tars, or what the side wrote there; or its copy on S3."""
CHUNK_BYTES = 64 << 20


class Side:
    """Answers `ask(kind=, how=, check=)`; the corpora of a side lie at `places[kind]`."""

    def __init__(self, passes: dict[str, Pass], places: dict[str, dict[str, str]]) -> None:
        self._passes, self._places = passes, places

    def __call__(self, kind: str, how: str, check: bool = False) -> dict[str, Any]:
        """Seconds of CPU, of this process and its children, and bytes; or a count of the samples, and a digest."""
        place = self._places["s3" if how == "s3" else "local"][kind]
        if check:
            return _digest(self._passes[how](place))
        begun = _cpu()
        size = sum(sum(array.nbytes for array in arrays) for _, arrays in self._passes[how](place))
        return {"seconds": _cpu() - begun, "bytes": size}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _digest(read: Iterator[Read]) -> dict[str, Any]:
    """The same for the same samples in any order."""
    count, total = 0, 0
    for tree, arrays in read:
        tree = tree if isinstance(tree, dict) else tree.to_json()
        digest = hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=8)
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        count, total = count + 1, total + int.from_bytes(digest.digest(), "big")
    return {"samples": count, "digest": f"{total % 2**64:016x}"}


def ours(places: dict[str, dict[str, str]]) -> Side:
    """Shards in sequence; in the order of a lane, as training reads; and out of a fresh cache of S3."""
    return Side({"sequential": _sequential, "shuffled": _lane, "s3": _through_cache}, places)


def _sequential(place: str) -> Iterator[Read]:
    from oneflow_core.data.reader import ShardReader

    for path in sorted(Path(place).glob("*.tar")):
        with ShardReader(path) as reader:
            for sample in reader:
                yield sample.document, [*sample.latents, *sample.features]


def _lane(place: str) -> Iterator[Read]:
    from oneflow_core.data.lanes import LaneOrder
    from oneflow_core.data.manifest import Manifest
    from oneflow_core.data.source import Source

    manifest = Manifest.load(place)
    order = LaneOrder(manifest.shards.column("samples"), lanes=1, seed="bench", window=8192)
    source = Source(manifest, order, holdout=0.0, held_out=False, cache=Path("/nowhere"), cache_bytes=0)
    for number in range(order.total):
        found = source.sample(0, number)
        assert found is not None
        yield found[0].document, [*found[0].latents, *found[0].features]
    source.close()


def _through_cache(place: str) -> Iterator[Read]:
    from oneflow_core.data.manifest import Manifest
    from oneflow_core.data.store import ShardStore

    manifest = Manifest.load(place)
    with tempfile.TemporaryDirectory() as cache:
        store = ShardStore(manifest, Path(cache), 1 << 40)
        for number, shard in enumerate(manifest.shards):
            store.prefetch(min(number + 1, len(manifest.shards) - 1))
            store.fetch(number)
            for row in range(shard.samples):
                sample = store.sample(number, row)
                yield sample.document, [*sample.latents, *sample.features]
        store.close()


def webdataset(places: dict[str, dict[str, str]]) -> Side:
    """`WebDataset(...).decode()`; shuffled by shards and by its buffer of 1,000; on S3 through curl."""
    return Side({"sequential": _webdataset, "shuffled": _webdataset_shuffled, "s3": _webdataset_s3}, places)


def _webdataset(place: str) -> Iterator[Read]:
    import webdataset

    urls = [str(path) for path in sorted(Path(place).glob("*.tar"))]
    return map(_named, webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


def _webdataset_shuffled(place: str) -> Iterator[Read]:
    import webdataset

    urls = [str(path) for path in sorted(Path(place).glob("*.tar"))]
    shuffled = webdataset.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(1000)
    return map(_named, shuffled.decode())


def _webdataset_s3(place: str) -> Iterator[Read]:
    import webdataset

    urls = [f"pipe:curl -s -f '{_signed(key)}'" for key in _keys(place)]
    return map(_named, webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


def _named(row: dict[str, Any]) -> Read:
    arrays = [row[name] for name in ("0.latent.npy", "0.features.npy") if name in row]
    return row["json"], arrays


def plain_tarfile(places: dict[str, dict[str, str]]) -> Side:
    """The standard library alone, numpy's own reader of arrays; on S3 from boto3's stream."""
    return Side({"sequential": _tarfile, "s3": _tarfile_s3}, places)


def _tarfile(place: str) -> Iterator[Read]:
    for path in sorted(Path(place).glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            yield from _tar_samples(tar)


def _tarfile_s3(place: str) -> Iterator[Read]:
    bucket, _, _ = place.removeprefix("s3://").partition("/")
    for key in _keys(place):
        stream = io.BufferedReader(_s3().get_object(Bucket=bucket, Key=key)["Body"], 1 << 20)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            yield from _tar_samples(tar)


def _tar_samples(tar: tarfile.TarFile) -> Iterator[Read]:
    key, tree, arrays = "", None, list[np.ndarray]()
    for info in tar:
        found, _, name = info.name.partition(".")
        if found != key and key:
            yield tree, arrays
            arrays = []
        content = tar.extractfile(info)
        assert content is not None
        key, data = found, content.read()
        if name == "json":
            tree = json.loads(data)
        else:
            arrays.append(np.load(io.BytesIO(data), allow_pickle=False))
    yield tree, arrays


def litdata(places: dict[str, dict[str, str]]) -> Side:
    """litdata's own chunks, through its StreamingDataset."""
    return Side(
        {
            "sequential": lambda place: _litdata(place, False),
            "shuffled": lambda place: _litdata(place, True),
            "s3": lambda place: _litdata(place, False),
        },
        places,
    )


def _litdata(place: str, shuffle: bool) -> Iterator[Read]:
    from litdata import StreamingDataset  # type: ignore[import-not-found]

    cache = tempfile.mkdtemp() if "://" in place else None
    options = {"storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}} if cache else {}
    try:
        for row in StreamingDataset(place, shuffle=shuffle, cache_dir=cache, **options):
            yield json.loads(row["json"]), [row[name] for name in ("latent", "features") if name in row]
    finally:
        if cache:
            shutil.rmtree(cache, ignore_errors=True)


def write_litdata(source: str, place: str) -> None:
    """The corpus of the tars at `source` as litdata's chunks at `place`."""
    from litdata.streaming.cache import Cache  # type: ignore[import-not-found]

    Path(place).mkdir(parents=True)
    cache = Cache(place, chunk_bytes=CHUNK_BYTES)
    for number, sample in enumerate(read_plainly(Path(source))):
        row: dict[str, Any] = {"json": json.dumps(sample.document.to_json()), "latent": sample.latents[0]}
        cache[number] = row | ({"features": sample.features[0]} if sample.features else {})
    cache.done()
    cache.merge()


def streaming(places: dict[str, dict[str, str]]) -> Side:
    """MosaicML's MDS: LocalDataset where the files are local, its leanest; StreamingDataset for S3."""
    _without_vision()
    return Side(
        {
            "sequential": lambda place: _mds(place, False),
            "shuffled": lambda place: _mds(place, True),
            "s3": _mds_s3,
        },
        places,
    )


def _mds(place: str, shuffle: bool) -> Iterator[Read]:
    from streaming.base import LocalDataset  # type: ignore[import-not-found]

    dataset = LocalDataset(place)
    order = np.random.default_rng(0).permutation(len(dataset)) if shuffle else range(len(dataset))
    return (_columns(dataset[int(number)]) for number in order)


def _mds_s3(place: str) -> Iterator[Read]:
    from streaming.base import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    clean_stale_shared_memory()
    with tempfile.TemporaryDirectory() as local:
        # It leaves its lock files where temporary files go.
        usual, tempfile.tempdir = tempfile.tempdir, local
        try:
            yield from map(_columns, StreamingDataset(remote=place, local=local, batch_size=1, shuffle=False))
        finally:
            tempfile.tempdir = usual


def _columns(row: dict[str, Any]) -> Read:
    return row["json"], [row[name] for name in ("latent", "features") if name in row]


def write_streaming(source: str, place: str) -> None:
    """The corpus of the tars at `source` as MDS at `place`; shapes are in the header, as its docs advise."""
    _without_vision()
    from streaming.base import MDSWriter

    writer = None
    for sample in read_plainly(Path(source)):
        arrays = {"latent": sample.latents[0]} | ({"features": sample.features[0]} if sample.features else {})
        if writer is None:
            shapes = {name: f"ndarray:float16:{','.join(map(str, a.shape))}" for name, a in arrays.items()}
            writer = MDSWriter(out=place, columns={"json": "json", **shapes}, size_limit=CHUNK_BYTES)
        writer.write({"json": sample.document.to_json(), **arrays})
    assert writer is not None
    writer.finish()


class Writer:
    """Answers `ask(source=, place=)` by writing a side's own copy of a corpus."""

    def __init__(self, side: str) -> None:
        self._write = {"litdata": write_litdata, "streaming": write_streaming}[side]

    def __call__(self, source: str, place: str) -> dict[str, Any]:
        """Nothing but that it is done."""
        self._write(source, place)
        return {}


def _without_vision() -> None:
    """MosaicML's package imports torchvision, which is not built for every torch, for datasets of no use here."""
    if "streaming" in sys.modules:
        return
    found = importlib.util.find_spec("streaming")
    assert found is not None and found.submodule_search_locations is not None
    package = types.ModuleType("streaming")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["streaming"] = package


def _s3() -> Any:
    import boto3

    return boto3.client("s3")


def _keys(place: str) -> list[str]:
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    found = _s3().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
    return sorted(row["Key"] for row in found if row["Key"].endswith(".tar"))


def _signed(key: str) -> str:
    arguments = {"Bucket": BUCKET, "Key": key}
    url: str = _s3().generate_presigned_url("get_object", Params=arguments, ExpiresIn=3600)
    return url


BUCKET = "oneflow"
