"""A corpus that is built through a proxy that fails a part of the requests is the same corpus."""

import os
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.conftest import RunningStack
from workflows import storage
from workflows.bench.fault_proxy import FAULTS, FaultProxy
from workflows.store_retries import RETRIES


def _fresh() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], share=0.0, seed=1) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        _fresh()
        yield running
    _fresh()


def only(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, *faults: str) -> None:
    """The next requests meet these, one each, and those after them none."""
    left = list(faults)
    monkeypatch.setattr(proxy, "_fault", lambda request: left.pop(0) if left else None)


def test_without_faults_it_only_passes_on(proxy: FaultProxy, stack: RunningStack) -> None:
    url, data = stack.url("proxy/plain"), os.urandom(300_000)
    before = RETRIES.counts()
    assert storage.put_atomic(url, data) and storage.read_bytes(url) == data
    assert storage.list_urls(stack.url("proxy/")) == [url]
    assert not storage.put_atomic(url, b"other", if_absent=True) and storage.size(url) == len(data)
    assert proxy.requests > 4 and not proxy.faults and RETRIES.counts() == before


@pytest.mark.parametrize("fault", ["latency", "slow_down", "reset", "truncated"])
def test_each_fault_of_a_read_is_outlived(
    fault: str, proxy: FaultProxy, stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, data = stack.url(f"proxy/read-{fault}"), os.urandom(300_000)
    storage.put_atomic(url, data)
    before = RETRIES.counts()
    only(proxy, monkeypatch, fault, fault)
    assert storage.read_bytes(url) == data
    # aiohttp itself tries once more where a connection that was used before is reset.
    meant = {"latency": {0}, "reset": {1, 2}}.get(fault, {2})
    assert (RETRIES.counts() - before).total() in meant


def test_a_conditional_write_whose_answer_was_lost_has_won(
    proxy: FaultProxy, stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stack.url("proxy/once")
    only(proxy, monkeypatch, "lost_reply", "lost_reply")
    assert storage.put_atomic(url, b"mine", if_absent=True)
    only(proxy, monkeypatch, "lost_reply")
    assert not storage.put_atomic(url, b"another's", if_absent=True)
    assert storage.read_bytes(url) == b"mine"


def test_a_stale_listing_lacks_the_new(
    proxy: FaultProxy, stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [stack.url(f"proxy/stale/{n}") for n in range(2)]
    storage.put_atomic(urls[0], b"old")
    monkeypatch.setattr("workflows.bench.fault_proxy.STALE_S", 5.0)
    time.sleep(6)
    storage.put_atomic(urls[1], b"new")
    only(proxy, monkeypatch, "stale_list")
    assert storage.list_urls(stack.url("proxy/stale/")) == urls[:1]
    assert storage.list_urls(stack.url("proxy/stale/")) == urls


def test_the_share_is_kept(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.bench.fault_proxy.LATENCY_S", 0.0)
    proxy.share = 0.5
    for _ in range(200):
        try:
            urllib.request.urlopen(proxy.url, timeout=60).read()
        except OSError:
            continue
    assert 70 <= proxy.faults.total() <= 130 and set(proxy.faults) <= set(FAULTS)
