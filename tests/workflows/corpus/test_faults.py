"""A build whose store fails, whose S3 server and encoder die, or that stops anywhere: the same corpus in the end.

`oneflow bench faults` does the same many times, with a watcher, and to the driver too.
"""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from oneflow_core.data.manifest import Manifest
from tests.conftest import RunningStack
from tests.workflows.corpus.inputs import corpus, pairs, tar
from tests.workflows.corpus.test_gc import samples
from tests.workflows.corpus.written import write_version
from workflows import storage
from workflows.bench.fault_proxy import FaultProxy
from workflows.bench.fault_site import TASKS, comparable
from workflows.corpus import build, shard
from workflows.corpus.cluster import start_local
from workflows.corpus.config import CorpusConfig
from workflows.corpus.verify import verify
from workflows.errors import OneFlowError
from workflows.stack import StackConfig, status, up
from workflows.stack.config import RayConfig

SMALL = {"understanding": None, "part_images": 4, "batch_size": 4, "actors": 1}


@pytest.fixture(scope="module")
def proxy(stack: RunningStack) -> Iterator[FaultProxy]:
    """A Ray whose workers reach the store through a proxy that spoils a tenth of the requests; so does this process."""
    import ray

    folder = tempfile.mkdtemp(prefix="of-", dir="/tmp")
    patch = pytest.MonkeyPatch()
    try:
        with FaultProxy(os.environ["AWS_ENDPOINT_URL"], share=0.1, seed=3) as running:
            patch.setenv("AWS_ENDPOINT_URL", running.url)
            patch.setattr("workflows.bench.fault_proxy.LATENCY_S", 0.2)
            start_local(num_cpus=2, object_store_memory=200_000_000, _temp_dir=folder)
            yield running
            ray.shutdown()
    finally:
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for number in range(4):
        tar(folder / "raw" / f"{number}.tar", pairs(8 * number, 8))
    return folder / "raw"


def config_of(root: str, raw: Path, *urls: str) -> CorpusConfig:
    source = {"name": "captions", "format": "webdataset", "urls": urls or [f"{raw}/*.tar"]}
    config = corpus(Path("unused"), source, encode=SMALL, shard={"minimum": 3})
    return config.model_copy(update={"root": root})


@pytest.fixture(scope="module")
def whole(proxy: FaultProxy, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built on local disk, which no fault reaches."""
    root = tmp_path_factory.mktemp("whole")
    assert build.run(config_of(str(root), raw)).made
    return root


def shards_of(url: str) -> dict[str, bytes]:
    """All files of the corpus, by name, as `comparable`."""
    names = storage.list_urls(f"{url}/shards")
    return {name.removeprefix(f"{url}/"): comparable(name, storage.read_bytes(name)) for name in names}


def wait_for(urls: str) -> None:
    deadline = time.monotonic() + 500
    while not storage.list_urls(urls):
        assert time.monotonic() < deadline, f"nothing at {urls}"
        time.sleep(0.1)


def kill_things(stack: RunningStack, root: str, killed: list[str]) -> None:
    """An encoder actor when the first latents are there, the S3 server soon after; the server is started again."""
    wait_for(f"{root}/latents")
    for process in psutil.Process().children(recursive=True):
        if re.search(TASKS["encode"], " ".join(process.cmdline())):
            process.kill()
            killed.append("encoder")
            break
    pid = status(stack.state_dir).services["s3"].pid
    assert pid is not None
    psutil.Process(pid).kill()
    killed.append("store")
    time.sleep(0.5)
    up(StackConfig(ray=RayConfig(enabled=False), min_free_mb=0), stack.state_dir)


@pytest.mark.timeout(1200)
def test_faults_of_the_store_and_kills_change_no_byte(
    proxy: FaultProxy, stack: RunningStack, raw: Path, whole: Path
) -> None:
    root, killed = stack.url("faulty"), list[str]()
    config = config_of(root, raw)
    killer = threading.Thread(target=kill_things, args=(stack, root, killed))
    killer.start()
    retries = 0
    try:
        report = build.run(config)
        retries = sum(report.retries.values())
    except OneFlowError:
        report = build.run(config)
    finally:
        killer.join()
    retries += sum(report.retries.values())
    assert "store" in killed and retries > 0 and proxy.faults.total() > 0
    assert report.to_json()["retries"] == dict(report.retries)
    proxy.share = 0.0
    assert verify(f"{root}/shards/test", deep=True).samples == 32
    assert shards_of(root) == shards_of(str(whole))


class Stopped(BaseException):
    """As a kill would be."""


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("proxy")
def test_stopped_at_any_write_readers_see_a_whole_version_or_none(
    raw: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own writes, which come after those of the shards; it is stopped before each of them in turn."""
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    manifest = Manifest.load(str(root / "shards/test"))
    for path in [root / "shards/test/latest", *(root / "shards").rglob("*.parquet")]:
        path.unlink()
    (root / "shards/test" / manifest.version / "manifest.json").unlink()
    written: list[str] = []

    def stopping(url: str, data: bytes) -> bool:
        if len(written) == stop:
            raise Stopped
        written.append(url)
        return storage.put_atomic(url, data)

    monkeypatch.setattr(shard, "put_atomic", stopping)
    config, models = config_of(str(root), raw), (manifest.codec, manifest.encoder)
    for stop in range(5):
        written.clear()
        with pytest.raises(Stopped):
            shard.run(config, models)
        manifests = list(root.glob("shards/test/*/manifest.json"))
        assert [verify(str(m.parent), deep=True).samples for m in manifests] == [32] * (stop > 3)
        assert not (root / "shards/test/latest").exists()
    stop = 5
    written.clear()
    shard.run(config, models)
    assert shards_of(str(root)) == shards_of(str(whole))


@pytest.mark.parametrize("stop", range(4))
def test_a_manifest_that_is_replaced_has_its_own_lists_at_any_moment(tmp_path: Path, stop: int) -> None:
    """The same documents from files that were touched since: the same version, another list of inputs."""
    from dataclasses import replace

    from oneflow_core.data.manifest import Input
    from oneflow_core.data.table import Table

    base = tmp_path / "c" / "v1"
    manifest = write_version(base, samples("a", "b"), 1)
    touched = replace(manifest, inputs=Table.of(Input, [Input("s", "x", "/x", 1, "etag", "0" * 64)]))
    for name, data in list(touched.files().items())[:stop]:
        (base / name).write_bytes(data)
    report = verify(str(base), deep=True)
    assert report.samples == 2 and len(report.manifest.inputs) == 0
    for name, data in touched.files().items():
        (base / name).write_bytes(data)
    report = verify(str(base), deep=True)
    assert Manifest.load(str(base)).inputs == touched.inputs
    assert [n.partition("-")[0] for n in report.strangers] == ["inputs"], (
        "the old list, for who still reads it"
    )
