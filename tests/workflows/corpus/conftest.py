"""A Ray of two CPUs for the tests of the corpus jobs."""

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from workflows.corpus.cluster import start_local


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
