"""A real Ray Serve with a tiny model, driven over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.tiny import tiny_parts
from workflows.errors import OneFlowError, Refused
from workflows.serving.service import Address, free_port, serving


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
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
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[3])}},
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OneFlowPipeline(tiny_parts()).save_pretrained(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def url(cluster: None, model: Path) -> Iterator[str]:
    with serving(str(model), cpus=0.5) as address:
        yield address


def ask(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/generate", data), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def pixels(segment: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(segment["data"]))), int)


TEXT = {"type": "text", "text": "a red circle"}
IMAGE = {"segments": [TEXT], "target": "image", "seed": 5}
STORY = {"segments": [TEXT], "target": "document", "seed": 7, "steps": 9, "trace": True}


def test_the_server_makes_what_the_pipeline_makes(url: str, model: Path) -> None:
    (document,) = OneFlowPipeline.from_pretrained(model)([Prompt(("a red circle",))], seeds=[5])
    status, answer = ask(url, IMAGE)
    assert status == 200
    assert np.abs(pixels(answer["segments"][0]) - np.asarray(document.images[0], int)).max() <= 1
    assert (answer["model"]["name"], answer["model"]["run_id"]) == (str(model), "run-1")


def test_requests_that_wait_together_are_computed_together(url: str) -> None:
    alone = [ask(url, r)[1] for r in (IMAGE, STORY)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda r: ask(url, r), [IMAGE, STORY] * 6))
    for (status, answer), one in zip(together, alone * 6, strict=True):
        assert status == 200
        assert answer["trace"] == one["trace"]
    metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()
    rows = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    requests = float(rows["oneflow_batch_requests_sum"])
    assert float(rows['oneflow_requests_total{status="200"}']) == requests
    assert requests > float(rows["oneflow_batch_requests_count"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\x00\xff", 400),
        ({"segments": [{"type": "image", "data": "/etc/passwd"}]}, 422),
        ({"segments": [{"type": "image", "url": "file:///etc/passwd"}]}, 422),
        ({"segments": [{"type": "text", "text": "x" * 5000}]}, 413),
        ({"steps": 10**12}, 422),
        (b" " * ((16 << 20) + 1), 413),
    ],
)
def test_bad_requests_get_a_clear_answer(url: str, body: Any, status: int) -> None:
    code, answer = ask(url, body)
    assert code == status
    assert set(answer["error"]) == {"field", "cause", "mend"}


def test_other_methods_and_paths_are_no_server_errors(url: str) -> None:
    for path, status in (("/v1/generate", 405), ("/nothing", 404), ("/../etc/passwd", 404)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url + path)
        assert caught.value.code == status


def test_health_and_page(url: str, model: Path) -> None:
    with urllib.request.urlopen(f"{url}/healthz") as reply:
        assert json.load(reply)["model"]["name"] == str(model)
    with urllib.request.urlopen(f"{url}/") as reply:
        page = reply.read().decode()
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert "<form" in page and "http://" not in page and "https://" not in page


def test_it_listens_on_loopback_only(url: str) -> None:
    import psutil

    port = int(url.rsplit(":", 1)[1])
    listening = {
        c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


def test_a_second_server_is_refused_while_one_runs(url: str, model: Path) -> None:
    with pytest.raises(Refused, match="runs on this cluster already"), serving(str(model)):
        pass
    assert ask(url, IMAGE)[0] == 200


@pytest.fixture(scope="module")
def no_server(cluster: None) -> None:
    """Runs after the tests that use `url`: pytest tears a module's fixtures down in the end only."""
    from ray import serve

    serve.shutdown()


def test_a_taken_port_is_an_error(no_server: None, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OneFlowError, match=f"127.0.0.1:{port}.*--port"),
            serving(str(model), address=Address(port=port)),
        ):
            pass


def test_a_model_that_is_not_there_is_an_error(no_server: None) -> None:
    with pytest.raises(OneFlowError, match="no such directory"), serving("nowhere/at/all"):
        pass


def test_free_ports_can_be_listened_on() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
