"""A real Ray Serve over HTTP: answers, streams, a full queue, clients that go, another version, a killed replica."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.workflows.serving.conftest import (
    BATCH,
    BODY_S,
    KEY,
    NAME,
    QUEUE,
    Registry,
    meters,
    picture,
    pixels,
    wait_for,
)
from workflows.cli import app
from workflows.client import Client, ServerError
from workflows.errors import OneFlowError, Refused
from workflows.serving.service import Address, free_port, serving

TEXT = {"type": "text", "text": "a red circle"}
IMAGE = {"segments": [TEXT], "target": "image", "seed": 5}
CAPTION = {"segments": [{"type": "image", "data": picture()}], "target": "text", "seed": 7, "trace": True}
SLOW = {"segments": [TEXT], "target": "image", "seed": 3, "steps": 200}


@pytest.fixture(scope="module")
def pipeline() -> OneFlowPipeline:
    return OneFlowPipeline.from_pretrained("embedded")


def events_of(http: httpx2.Client, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    with http.stream("POST", "/v1/generate", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        for event in httpx2.EventSource(reply, 1 << 26):
            yield event.event, json.loads(event.data)


def test_the_server_makes_what_the_pipeline_makes(
    http: httpx2.Client, pipeline: OneFlowPipeline, registry: Registry
) -> None:
    (document,) = pipeline([Prompt(("a red circle",))], seeds=[5])
    answer = http.post("/v1/generate", json=IMAGE).json()
    assert np.abs(pixels(answer["segments"][0]["data"]) - np.asarray(document.images[0], int)).max() <= 1
    assert answer["model"] == {"name": NAME, "version": "1", "run_id": registry.run_id}


def test_what_shares_the_batch_changes_nothing(http: httpx2.Client) -> None:
    alone = [http.post("/v1/generate", json=r).json() for r in (IMAGE, CAPTION)]
    before = meters(http)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda r: http.post("/v1/generate", json=r).json(), [IMAGE, CAPTION] * 2))
    for answer, one in zip(together, alone * 2, strict=True):
        assert answer["trace"] == one["trace"]
        for a, b in zip(answer["segments"], one["segments"], strict=True):
            if a["type"] == "text":
                assert a == b
            else:
                assert np.abs(pixels(a["data"]) - pixels(b["data"])).max() <= 1
    after = meters(http)
    steps = after["oneflow_batch_requests_count"] - before["oneflow_batch_requests_count"]
    assert after["oneflow_batch_requests_sum"] - before["oneflow_batch_requests_sum"] > steps
    assert after["oneflow_steps_total"] - before["oneflow_steps_total"] == steps


def test_a_stream_tells_every_step_and_ends_with_the_answer(http: httpx2.Client) -> None:
    body = {
        **IMAGE,
        "target": "document",
        "seed": 1,
        "steps": 24,
        "max_images": 2,
        "previews": 4,
        "trace": True,
    }
    told, words = [], []
    for name, data in events_of(http, body):
        told.append(name)
        if name == "insertions":
            for gone in data["deletions"]:
                assert words.pop(gone["position"])["id"] == gone["id"]
            for new in data["insertions"]:
                words.insert(new["position"], new)
        if name == "preview":
            assert pixels(data["data"]).shape == (data["height"], data["width"], 3)
            assert data["id"] in {w["id"] for w in words if w["image"]}
    done = data
    assert told[0] == "start" and told[-1] == "done" and told.count("insertions") > 3
    segments = done["segments"]
    assert [w["image"] for w in words].count(True) == sum(s["type"] == "image" for s in segments)
    spoken = "".join(w["token"] for w in words if not w["image"])
    assert spoken == "".join(s["text"] for s in segments if s["type"] == "text")
    (whole,) = [http.post("/v1/generate", json=body).json()]
    assert (whole["trace"], whole["seed"]) == (done["trace"], done["seed"])


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

    wait_for(freed, "both cancelled", 60)
    left = 'oneflow_documents_total{event="left"}'
    assert meters(http)[left] == before[left]


def test_a_full_queue_says_when_to_come_back(http: httpx2.Client, url: str) -> None:
    room = BATCH + QUEUE
    with ThreadPoolExecutor(room) as pool:
        held = [pool.submit(http.post, "/v1/generate", json={**SLOW, "seed": i}) for i in range(room)]
        wait_for(lambda: meters(http)["oneflow_queue_documents"] == QUEUE, "a full queue")
        refused = http.post("/v1/generate", json=IMAGE)
        chat = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        with pytest.raises(ServerError) as caught:
            Client(url, api_key=KEY, attempts=1).generate(["a"])
        patient = Client(url, api_key=KEY, attempts=20).generate(["a"], seed=1)
    assert refused.status_code == chat.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert set(refused.json()["error"]) == {"field", "cause", "mend"}
    assert chat.json()["error"]["code"] == "rate_limit_exceeded"
    assert caught.value.status == 429 and caught.value.retry_after_s is not None
    assert [f.result().status_code for f in held] == [200] * room
    assert patient.attempts > 1 and patient.images


def test_many_choices_do_not_hold_up_the_next_request(http: httpx2.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "n": 4,
        "steps": 200,
        "target": "image",
    }
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(http.post, "/v1/chat/completions", json=body)
        wait_for(lambda: meters(http)["oneflow_running_documents"] == BATCH, "a full batch")
        one = http.post("/v1/generate", json=IMAGE)
        assert one.status_code == 200 and not many.done()
    assert [c["index"] for c in many.result().json()["choices"]] == [0, 1, 2, 3]


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


def test_the_openai_package_works(url: str, http: httpx2.Client) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    (model,) = client.models.list().data
    assert model.id == NAME
    address = f"data:image/png;base64,{picture()}"
    content: Any = [{"type": "image_url", "image_url": {"url": address}}]
    messages: Any = [{"role": "user", "content": content}]
    expected = http.post("/v1/generate", json=CAPTION).json()["segments"][0]["text"]
    chat = client.chat.completions.create(model=NAME, messages=messages, seed=7, n=2)
    assert chat.choices[0].message.content == expected and chat.choices[0].finish_reason == "stop"
    assert chat.usage and chat.usage.prompt_tokens == 1 and chat.usage.completion_tokens > 1
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=messages, seed=7, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage and [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    short = client.chat.completions.create(model=NAME, messages=messages, seed=7, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage and short.usage.completion_tokens == 2

    drawn = http.post("/v1/generate", json=IMAGE).json()["segments"][0]["data"]
    pictured = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "a red circle"}],
        seed=5,
        extra_body={"modalities": ["image"]},
    )
    (image,) = pictured.choices[0].message.images  # type: ignore[attr-defined]
    assert np.abs(pixels(image["image_url"]["url"].partition(",")[2]) - pixels(drawn)).max() <= 1
    images = client.images.generate(
        model=NAME, prompt="a red circle", n=2, response_format="b64_json", extra_body={"seed": 5}
    )
    assert images.data and len(images.data) == 2
    assert np.abs(pixels(images.data[0].b64_json or "") - pixels(drawn)).max() <= 1

    for wrong in ({"model": "gpt-4o"}, {"temperature": 99}, {"tools": []}, {"stop": "x"}):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as caught:
            client.chat.completions.create(**{"model": NAME, "messages": messages, **wrong})
        assert caught.value.param == next(iter(wrong))
    for address in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        content[0]["image_url"]["url"] = address
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=NAME, messages=messages)
        assert caught.value.param == "messages.0.content.0.image_url.url"


def test_the_command_line_asks_a_server(url: str, http: httpx2.Client, tmp_path: Path) -> None:
    drawn = http.post("/v1/generate", json=IMAGE).json()["segments"][0]["data"]
    given = ["--prompt", "a red circle", "--seed", "5", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["generate", "--url", url, "--api-key-env", "TESTS_KEY", *given])
    assert result.exit_code == 0, result.output
    made = np.asarray(Image.open(tmp_path / "image-0.png"), int)
    assert np.abs(made - pixels(drawn)).max() <= 1
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["model"]["name"] == NAME and trace["trace"]["passes"] > 1


def test_another_version_takes_over_without_a_failed_request(
    http: httpx2.Client, url: str, registry: Registry
) -> None:
    first, upgraded = http.get("/healthz").json()["model"]["version"], threading.Event()

    def ask(seed: int) -> list[tuple[str, bool]]:
        """Until a request that began after the upgrade is answered."""
        made, last = [], False
        with Client(url, api_key=KEY, attempts=1) as client:
            while not last:
                last = upgraded.is_set()
                answer = client.generate(["a red circle"], seed=seed, steps=8)
                made.append((answer.model["version"], bool(answer.images)))
        return made

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(ask, seed) for seed in range(4)]
        try:
            second = registry.add()
            registry.point(second)
            told = wait_for(lambda: http.get("/healthz").json()["upgrade"], "an upgrade")
        finally:
            upgraded.set()
    assert (told["version"], told["outcome"]) == (second, "done")
    for asker in askers:
        versions = [version for version, drawn in asker.result() if drawn]
        assert len(versions) == len(asker.result()) and set(versions) == {first, second}
        assert versions == sorted(versions, key=int)
    assert meters(http)['oneflow_upgrades_total{outcome="done"}'] == 1


def test_a_version_that_does_not_load_leaves_the_old_one(http: httpx2.Client, registry: Registry) -> None:
    before = http.get("/healthz").json()["model"]["version"]
    broken = registry.add(broken=True)
    registry.point(broken)
    told = wait_for(
        lambda: (u := http.get("/healthz").json()["upgrade"]) and u["outcome"] == "failed" and u, "a report"
    )
    assert told["version"] == broken and told["cause"] and "Traceback" not in told["cause"]
    assert http.post("/v1/generate", json=IMAGE).json()["model"]["version"] == before
    registry.point(before)
    wait_for(lambda: http.get("/healthz").json()["upgrade"] is None, "the report to be dropped")


def replica_pid() -> int:
    import psutil

    children = psutil.Process().children(recursive=True)
    (pid,) = [p.pid for p in children if "ServeReplica:oneflow" in " ".join(p.cmdline())]
    return int(pid)


def test_a_killed_replica_costs_503_and_comes_back_though_the_alias_is_broken(
    http: httpx2.Client, url: str, registry: Registry
) -> None:
    streamed: list[str] = []
    registry.point(registry.add(broken=True))

    def stream() -> None:
        streamed.extend(json.dumps([name, data]) for name, data in events_of(http, SLOW))

    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(http.post, "/v1/generate", json=SLOW)
        grown = pool.submit(stream)
        wait_for(
            lambda: meters(http)["oneflow_running_documents"] == 2 and len(streamed) > 1, "two under way"
        )
        os.kill(replica_pid(), signal.SIGKILL)
        reply = whole.result(timeout=300)
        grown.result(timeout=300)
    assert reply.status_code == 503 and set(reply.json()["error"]) == {"field", "cause", "mend"}
    assert json.loads(streamed[-1])[0] == "error"
    with Client(url, api_key=KEY, attempts=30) as client:
        answer = client.generate(["a red circle"], seed=5)
        assert answer.images and answer.model["version"] == "1"
        assert client.health()["upgrade"]["outcome"] == "failed"


@pytest.fixture(scope="module")
def no_server(cluster: None) -> None:
    """Runs after the tests that use `url`: pytest tears a module's fixtures down in the end only."""
    from ray import serve

    serve.shutdown()


def test_a_taken_port_is_an_error(no_server: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OneFlowError, match=f"127.0.0.1:{port}.*--port"),
            serving("embedded", address=Address(port=port)),
        ):
            pass


def test_a_model_that_no_replica_can_load_is_an_error(no_server: None, tmp_path: Path) -> None:
    with pytest.raises(OneFlowError, match="model_index.json"), serving(str(tmp_path)):
        pass


def test_a_model_that_is_not_there_is_an_error_before_ray_starts() -> None:
    with pytest.raises(OneFlowError, match="no such directory"), serving("nowhere/at/all"):
        pass


def test_free_ports_can_be_listened_on() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
