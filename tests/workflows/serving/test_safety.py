"""A real Ray Serve among callers who mean no good, or know no better: what they get, and that others are served."""

from __future__ import annotations

import base64
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from tests.workflows.serving.conftest import meters, wait_for
from workflows.bench import garbage, garbage_images
from workflows.bench.garbage_wire import Place, head
from workflows.bench.process_memory import held, processes
from workflows.serving.service import serving

GOOD = {"segments": [{"type": "text", "text": "a red circle"}], "seed": 5, "steps": 4, "trace": True}
BODY_S = 2.0
REQUESTS = 240
GROWTH_MIB = 400
"""What the allocator may keep of bodies and images that were read, of which 8 are there at once and each may be 48 MiB
(154 were seen). What stays is told here, not what there was for a moment."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
HOOKS = '''
import schemathesis

MOST = {"steps": 200, "max_tokens": 2048}


@schemathesis.hook
def before_call(context, case, kwargs):
    """What is good about a request stays good, and costs the model one step."""
    body = case.body
    if isinstance(body, dict):
        for name in ["steps"] if "prompt" in body else MOST:
            asked = body.get(name)
            if asked is None or (type(asked) is int and 1 <= asked <= MOST[name]):
                body[name] = 1
'''


@pytest.fixture(scope="module")
def url(cluster: Path) -> Iterator[str]:
    """A server without a key: what needs one is refused before anything is read."""
    with serving("embedded", batch=4, queue=8, body_s=BODY_S) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=300) as client:
        yield client


@pytest.fixture(autouse=True)
def good(http: httpx2.Client) -> Iterator[dict[str, Any]]:
    """A good request, which gets the same document after each test, with nothing left behind."""
    before = asked(http)
    yield before
    assert asked(http) == before

    def empty() -> bool:
        now = meters(http)
        return not (
            now["oneflow_running_documents"] or now["oneflow_queue_documents"] or now["oneflow_waiting"]
        )

    wait_for(empty, "an idle replica", 180)


def asked(http: httpx2.Client) -> dict[str, Any]:
    reply = http.post("/v1/generate", json=GOOD, timeout=180)
    assert reply.status_code == 200
    return {name: value for name, value in reply.json().items() if name != "seconds"}


def wire_to(url: str) -> socket.socket:
    at = urlsplit(url)
    return socket.create_connection((at.hostname or "", at.port or 0), timeout=300)


def replica_mib() -> float:
    """Of the replica and of its model's process."""
    own = [p for role, p in processes(psutil.Process().pid) if role in ("replica", "model")]
    assert len(own) == 2
    return sum(held(p)[0] for p in own)


def test_the_description_holds_for_whatever_is_sent(url: str, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text('hooks = "hooks.py"\n')
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
    options = ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
    bounds = ["--max-examples", "10", "--seed", "1", "--no-color", "--request-timeout", "300"]
    run = subprocess.run(
        [*command, *options, *bounds], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:]
    assert "7 selected / 7 total" in run.stdout and "passed" in run.stdout


def test_garbage_gets_nothing_and_breaks_nothing(url: str) -> None:
    findings, before = garbage.Findings(), replica_mib()
    with garbage.listener() as (unreached, came):
        garbage.throw(range(REQUESTS), Place(urlsplit(url).netloc, listener=unreached), findings)
    assert findings.objections == [] and came == []
    assert sum(findings.statuses.values()) == REQUESTS
    assert {"400", "422", "413", "closed"} <= set(findings.statuses)
    assert replica_mib() - before < GROWTH_MIB


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (garbage_images.huge_png, 413),
        (garbage_images.huge_jpeg, 413),
        (garbage_images.huge_webp, 413),
        (garbage_images.text_bomb, 422),
        (garbage_images.long_rows, 200),
        (garbage_images.flat_png, 200),
        (garbage_images.other_format, 422),
        (garbage_images.svg, 422),
    ],
)
def test_bombs_do_not_go_off(http: httpx2.Client, make: Any, status: int) -> None:
    data = base64.b64encode(make(random.Random(0))).decode()
    body = {"segments": [{"type": "image", "data": data}] * 8, "target": "text", "steps": 1, "max_tokens": 1}
    before = replica_mib()
    reply = http.post("/v1/generate", json=body)
    assert reply.status_code == status
    assert replica_mib() - before < GROWTH_MIB


def test_a_byte_a_second_is_given_up_and_frees_its_place(url: str, http: httpx2.Client) -> None:
    with wire_to(url) as wire:
        wire.sendall(head(Place("x"), Content_Length="1000"))
        wire.settimeout(0.5)
        deadline, answer = time.monotonic() + 120, b""
        while not answer and time.monotonic() < deadline:
            wire.sendall(b" ")
            try:
                answer = wire.recv(65536)
            except TimeoutError:
                assert meters(http)["oneflow_waiting"] <= 1
        wire.settimeout(60)
        while b"}}" not in answer:
            answer += wire.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"field", "cause", "mend"}


def test_a_stream_that_nobody_reads_holds_nobody_up(url: str, http: httpx2.Client) -> None:
    value = {**GOOD, "target": "document", "steps": 60, "max_images": 4, "stream": True, "previews": 1}
    body = json.dumps(value).encode()
    with wire_to(url) as deaf:
        deaf.sendall(head(Place("x"), Content_Length=str(len(body))) + body)
        wait_for(lambda: meters(http)["oneflow_running_documents"] == 1, "it to run", 180)
        wait_for(lambda: meters(http)["oneflow_running_documents"] == 0, "its end", 300)
        asked(http)


def test_a_head_without_end_is_cut_off(url: str) -> None:
    with wire_to(url) as wire:
        wire.sendall(b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(ConnectionError):
            for _ in range(64):
                wire.sendall(b"a" * (1 << 20))
