"""One real Ray Serve for the tests of this folder: a model out of a real MLflow registry, behind an API key."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from oneflow_core.model_source import ASSETS
from tests.conftest import RunningStack
from workflows.serving.proxy import PATH, VARIABLE
from workflows.serving.service import serving

KEY = "correct-horse-battery-staple"
NAME = "served-by-tests"
BATCH, QUEUE, BODY_S = 2, 3, 2.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A Ray of two cores; gives the directory of its session."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as scratch:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            _temp_dir=scratch,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[3]), VARIABLE: PATH}},
        )
        yield Path(scratch)
        ray.shutdown()


@dataclass(frozen=True)
class Registry:
    """The registered model of these tests: its versions are the model in the package, but the broken one."""

    client: Any
    run_id: str
    place: str

    def add(self, *, broken: bool = False) -> str:
        """A version more; returns its number."""
        source = f"{self.place}/{'broken' if broken else 'model'}"
        return str(self.client.create_model_version(NAME, source, self.run_id).version)

    def point(self, version: str) -> None:
        """Moves the alias."""
        self.client.set_registered_model_alias(NAME, "live", version)


@pytest.fixture(scope="module")
def registry(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 with the alias `live`."""
    from workflows.tracking import client_of

    client = client_of(os.environ["MLFLOW_TRACKING_URI"])
    run = client.create_run(client.create_experiment(NAME))
    broken = tmp_path_factory.mktemp("broken")
    shutil.copy(ASSETS / "model_index.json", broken)
    client.log_artifacts(run.info.run_id, str(ASSETS), "model")
    client.log_artifacts(run.info.run_id, str(broken), "broken")
    client.create_registered_model(NAME)
    made = Registry(client, run.info.run_id, run.info.artifact_uri)
    made.point(made.add())
    return made


@pytest.fixture(scope="module")
def url(cluster: Path, registry: Registry) -> Iterator[str]:
    """A server with a batch of 2, a queue of 3, and an API key, that follows its alias."""
    os.environ["TESTS_KEY"] = KEY
    options = {"batch": BATCH, "queue": QUEUE, "body_s": BODY_S, "follow_s": 1.0, "api_key_env": "TESTS_KEY"}
    with serving(f"models:/{NAME}@live", cpus=1, **options) as address:
        yield address
    del os.environ["TESTS_KEY"]


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    """Asks the server with the key."""
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=300) as client:
        yield client


def meters(http: httpx2.Client) -> dict[str, float]:
    """The replica's counters by name and labels."""
    lines = http.get("/metrics").text.splitlines()
    return {name: float(v) for name, v in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}


def wait_for(true: Callable[[], Any], what: str, timeout_s: float = 180.0) -> Any:
    """Asks until the answer is true, and gives it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := true():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def picture(size: tuple[int, int] = (64, 64), colour: tuple[int, int, int] = (200, 30, 10)) -> str:
    """A PNG of one colour, in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels(data: str) -> np.ndarray:
    """A PNG in base64 as numbers."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int)
