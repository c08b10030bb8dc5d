"""What every test may use: `stack` is a real S3 server and a real MLflow server, started once a session."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no failure; pytest's own timeout stops what hangs.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray's workers stand back behind all else (nice 15), which beside other tests is to stand still.
os.environ.setdefault("RAY_worker_niceness", "0")
# A stack that the developer runs in this checkout is none of the tests' business.
os.environ["ONEFLOW_HOME"] = tempfile.mkdtemp(prefix="oneflow-home-")


@dataclass(frozen=True)
class RunningStack:
    """The stack of this test session; its environment is in `os.environ`."""

    state_dir: Path
    env: dict[str, str]
    bucket: str = "oneflow"

    def url(self, name: str) -> str:
        """An S3 URL of its own for a test."""
        return f"s3://{self.bucket}/{name}"


@pytest.fixture(scope="session", autouse=True)
def _home() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["ONEFLOW_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _fresh_clients() -> Iterator[None]:
    """fsspec keeps a client for ever with the endpoint that it first saw; tests change endpoints."""
    yield
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    """S3 and MLflow (no Ray), ready; AWS_* and MLFLOW_TRACKING_URI are set for the rest of the session."""
    from workflows.stack import StackConfig, connect, down, up
    from workflows.stack.config import RayConfig

    state_dir = Path(os.environ["ONEFLOW_HOME"]) / "stack"
    up(StackConfig(ray=RayConfig(enabled=False), min_free_mb=0), state_dir)
    yield RunningStack(state_dir, connect(state_dir))
    down(state_dir, purge=True)


@pytest.fixture(scope="module")
def ray_stack(stack: RunningStack) -> Iterator[RunningStack]:
    """`stack` with a Ray head and its job server beside it; RAY_ADDRESS and its token are set for the module."""
    from workflows.stack import StackConfig, connect, up
    from workflows.stack.config import RayConfig

    up(StackConfig(ray=RayConfig(num_cpus=2, object_store_mb=300), min_free_mb=0), stack.state_dir)
    before = dict(os.environ)
    yield RunningStack(stack.state_dir, connect(stack.state_dir))
    # Ray keeps the first token that this process used, so a Ray that a later test starts must have it too.
    for name in set(os.environ) - set(before):
        if not name.startswith("RAY_AUTH"):
            del os.environ[name]
    up(StackConfig(ray=RayConfig(enabled=False), min_free_mb=0), stack.state_dir)
