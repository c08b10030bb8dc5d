"""A Ray of two CPUs for the tests of the corpus jobs; or tasks of ingest without one."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from workflows.corpus import ingest, retry
from workflows.corpus.cluster import start_local
from workflows.corpus.units import Unit


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray is up, of this module's own."""
    import ray

    folder = tempfile.mkdtemp(prefix="of-", dir="/tmp")
    try:
        start_local(num_cpus=2, object_store_memory=300_000_000, _temp_dir=folder)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tasks_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are ingested in this process, one after the other."""

    def each(units: Sequence[Unit], work: Callable[[Unit], Any]) -> Iterator[tuple[Unit, Any]]:
        yield from ((unit, work(unit)) for unit in units)

    monkeypatch.setattr(ingest, "each", each)
    for module in (ingest, retry):
        monkeypatch.setattr(module, "cluster", nullcontext)
