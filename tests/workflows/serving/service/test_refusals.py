"""A real Ray Serve whose queue is full, whose clients go, or who get nothing from it."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from tests.workflows.serving.conftest import KEY, meters, picture, wait_for
from tests.workflows.serving.service.conftest import (
    BATCH,
    BODY_S,
    IMAGE,
    NAME,
    QUEUE,
    SLOW,
    Registry,
    events_of,
)
from workflows.client import Answer, Client, ServerError
from workflows.errors import Refused
from workflows.serving.service import serving


def test_a_client_that_goes_away_frees_its_place(http: httpx2.Client) -> None:
    before = meters(http)
    for name, _ in events_of(http, SLOW):
        if name == "insertions":
            break
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/generate", json=SLOW, timeout=0.7)

    def freed() -> bool:
        now = meters(http)
        counts = [
            now.get(c, 0) - before.get(c, 0)
            for c in ('oneflow_documents_total{event="cancelled"}', 'oneflow_requests_total{status="499"}')
        ]
        return counts == [2, 2] and now["oneflow_running_documents"] == 0 and now["oneflow_waiting"] == 0

    wait_for(freed, "both cancelled")
    left = 'oneflow_documents_total{event="left"}'
    assert meters(http)[left] == before[left]


def test_a_batch_whose_client_goes_away_frees_all_its_places(http: httpx2.Client, url: str) -> None:
    before, cancelled = meters(http), 'oneflow_documents_total{event="cancelled"}'
    requests = [IMAGE, *({**SLOW, "seed": seed} for seed in range(3))]
    with Client(url, api_key=KEY) as client:
        came = client.batch(requests)
        index, answer = next(came)
        assert index == 0 and isinstance(answer, Answer) and answer.images
        came.close()

    def freed() -> bool:
        now = meters(http)
        gone = now.get(cancelled, 0) - before.get(cancelled, 0)
        return gone == 3 and now["oneflow_running_documents"] == now["oneflow_waiting"] == 0

    wait_for(freed, "three cancelled")


def test_a_full_queue_says_when_to_come_back(http: httpx2.Client, url: str) -> None:
    room = BATCH + QUEUE
    with ThreadPoolExecutor(room) as pool:
        held = [pool.submit(http.post, "/v1/generate", json={**SLOW, "seed": i}) for i in range(room)]
        wait_for(lambda: meters(http)["oneflow_queue_documents"] == QUEUE, "a full queue")
        refused = http.post("/v1/generate", json=IMAGE)
        chat = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        with pytest.raises(ServerError) as caught:
            Client(url, api_key=KEY, patience_s=0).generate(["a"])
        patient = Client(url, api_key=KEY).generate(["a"], seed=1)
    assert refused.status_code == chat.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert set(refused.json()["error"]) == {"field", "cause", "mend"}
    assert chat.json()["error"]["code"] == "rate_limit_exceeded"
    assert caught.value.status == 429 and caught.value.retry_after_s is not None
    assert [f.result().status_code for f in held] == [200] * room
    assert patient.attempts > 1 and patient.images


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\x00\xff", 400),
        ({"segments": [{"type": "image", "data": "/etc/passwd"}]}, 422),
        ({"segments": [{"type": "image", "url": "file:///etc/passwd"}]}, 422),
        ({"segments": [{"type": "image", "data": picture((3000, 3000))}]}, 413),
        ({"segments": [{"type": "text", "text": "x" * 5000}]}, 413),
        ({"steps": 10**12}, 422),
        (b" " * ((16 << 20) + 1), 413),
        (b" " * (80 << 20), 413),
    ],
)
def test_bad_requests_get_a_clear_answer(http: httpx2.Client, body: Any, status: int) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = http.post("/v1/generate", content=data)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"field", "cause", "mend"}


def test_a_body_that_does_not_arrive_is_given_up(url: str) -> None:
    at = urlsplit(url)
    started = time.monotonic()
    with socket.create_connection((at.hostname, at.port), timeout=300) as wire:
        head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n"
        wire.sendall(head.encode() + b'{"seg')
        reply = wire.recv(65536)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started >= BODY_S


def test_other_methods_and_paths_are_no_server_errors(http: httpx2.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/generate", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/v1/chat/nothing", 404),
    ):
        reply = http.request(method, path)
        assert reply.status_code == status
        assert "error" in reply.json()


def test_a_callers_headers_give_serve_no_orders(url: str) -> None:
    at = urlsplit(url)
    strange = (
        b"x-request-timeout-seconds: 0.001",
        b"serve_multiplexed_model_id: \xff",
        b"x-request-id: \xff\xfe",
        b"\xc3\xa4: x",
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
        + b"A" * 22
        + b"==",
    )
    for header in strange:
        with socket.create_connection((at.hostname, at.port), timeout=300) as wire:
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + header + b"\r\nConnection: close\r\n\r\n")
            status = int(wire.recv(65536).split()[1])
        assert status in (200, 400, 403, 404), (header, status)


def test_without_the_key_only_what_is_public_is_told(url: str, http: httpx2.Client, cluster: Path) -> None:
    for key in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", "Bearer \xff"):
        for method, path in (("POST", "/v1/generate"), ("GET", "/v1/models"), ("GET", "/metrics")):
            reply = httpx2.request(method, url + path, headers={"Authorization": key.encode("latin-1")})
            assert reply.status_code == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/healthz", "/openapi.json", "/"):
        assert httpx2.get(url + path).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
    written = [
        f for f in cluster.rglob("*") if f.is_file() and not f.is_symlink() and f.stat().st_size < 1 << 26
    ]
    assert len(written) > 10
    assert not [f for f in written if KEY.encode() in f.read_bytes()]


def test_health_and_page(url: str, registry: Registry) -> None:
    health = httpx2.get(f"{url}/healthz").json()
    assert health["status"] == "ok" and health["model"]["name"] == NAME and health["upgrade"] is None
    page = httpx2.get(f"{url}/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<form" in page.text and "http://" not in page.text and "https://" not in page.text


def test_it_listens_on_loopback_only(url: str) -> None:
    import psutil

    port = urlsplit(url).port
    listening = {
        c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


def test_a_second_server_is_refused_while_one_runs(url: str, http: httpx2.Client) -> None:
    with pytest.raises(Refused, match="runs on this cluster already"), serving("embedded"):
        pass
    assert http.post("/v1/generate", json=IMAGE).status_code == 200
