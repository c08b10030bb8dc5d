"""One real Ray Serve for the tests of this folder: a model out of a real MLflow registry, behind an API key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from oneflow_core.model_source import ASSETS
from tests.conftest import RunningStack
from tests.workflows.serving.conftest import KEY, picture
from workflows.serving.service import serving

NAME = "served-by-tests"
BATCH, QUEUE, BODY_S = 2, 3, 2.0
TEXT = {"type": "text", "text": "a red circle"}
IMAGE = {"segments": [TEXT], "target": "image", "seed": 5}
CAPTION = {"segments": [{"type": "image", "data": picture()}], "target": "text", "seed": 7, "trace": True}
SLOW = {"segments": [TEXT], "target": "image", "seed": 3, "steps": 200}


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


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
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
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
        yield client


def events_of(http: httpx2.Client, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a document as they come."""
    with http.stream("POST", "/v1/generate", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        for event in httpx2.EventSource(reply, 1 << 26):
            yield event.event, json.loads(event.data)
