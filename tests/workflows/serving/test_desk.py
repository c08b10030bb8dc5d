"""The routes of one replica with a tiny model, without a server: answers, refusals, counts, and the description."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.tiny import tiny_parts
from tests.workflows.serving.conftest import picture, pixels
from workflows.serving.desk import Desk
from workflows.serving.engine import Engine, Room
from workflows.serving.model import LocalModel
from workflows.serving.openapi import document
from workflows.serving.proxy import Survivor
from workflows.serving.wire import Limits

TEXT = {"type": "text", "text": "a red circle"}
REQUESTS: list[dict[str, Any]] = [
    {"segments": [TEXT], "target": "image", "seed": 5},
    {"segments": [{"type": "image", "data": picture((90, 60))}], "target": "text", "seed": 6, "trace": True},
    {"segments": [TEXT], "target": "document", "seed": 7, "steps": 9, "max_images": 1},
    {"segments": [], "target": "image", "seed": 8, "guidance": 1.0},
]
CHAT = {"messages": [{"role": "user", "content": "a red circle"}], "seed": 4}
IDENTITY = {"name": "tiny", "version": "3", "run_id": "r"}


@asynccontextmanager
async def desk_of(limits: Limits | None = None) -> AsyncIterator[tuple[Desk, httpx2.AsyncClient]]:
    model = LocalModel(OneFlowPipeline(tiny_parts(), IDENTITY), 4)
    engine = Engine(model, Room(16), limits or Limits(1 << 20))
    desk = Desk(engine)
    routes = [
        Route("/v1/generate", desk.generate, methods=["POST"]),
        Route("/v1/batch", desk.batch, methods=["POST"]),
        Route("/v1/chat/completions", desk.chat, methods=["POST"]),
        Route("/v1/images/generations", desk.pictures, methods=["POST"]),
        Route("/v1/models", desk.models),
    ]
    transport = httpx2.ASGITransport(Survivor(Starlette(routes=routes)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://desk") as client:
        yield desk, client
    await asyncio.to_thread(engine.close)


def run(
    test: Callable[[Desk, httpx2.AsyncClient], Coroutine[Any, Any, None]], limits: Limits | None = None
) -> None:
    async def within() -> None:
        async with desk_of(limits) as (desk, client):
            await test(desk, client)

    asyncio.run(within())


def check(name: str, value: Any) -> None:
    """Holds an answer to its schema in the description; nothing that the schema does not name."""
    whole = document()
    schema = {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)
    assert set(value) <= set(whole["components"]["schemas"][name]["properties"])


def test_answers_are_the_pipelines_and_as_described() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        replies = await asyncio.gather(*(client.post("/v1/generate", json=r) for r in REQUESTS))
        for reply in replies:
            assert reply.status_code == 200
            check("Answer", reply.json())
        drawn, told = replies[0].json(), replies[1].json()
        (made,) = OneFlowPipeline(tiny_parts())([Prompt(("a red circle",))], seeds=[5])
        assert np.abs(pixels(drawn["segments"][0]["data"]) - np.asarray(made.images[0], int)).max() <= 1
        assert drawn["model"] == IDENTITY and drawn["trace"] is None
        text = "".join(s["text"] for s in told["segments"])
        assert text and "".join(i["text"] for i in told["trace"]["insertions"]) == text

    run(test)


def test_without_a_seed_one_is_drawn_and_told() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        first, second = [(await client.post("/v1/generate", json={"segments": [TEXT]})).json() for _ in "12"]
        assert first["seed"] != second["seed"]
        again = (await client.post("/v1/generate", json={"segments": [TEXT], "seed": first["seed"]})).json()
        difference = pixels(again["segments"][0]["data"]) - pixels(first["segments"][0]["data"])
        assert np.abs(difference).max() <= 1
        assert first["seed"] < 1 << 53

    run(test)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/generate", b"", 400, "body"),
        ("/v1/generate", {"segments": [{"type": "image", "data": "/etc/passwd"}]}, 422, "segments.0.data"),
        (
            "/v1/generate",
            {"segments": [{"type": "image", "data": picture((3000, 3000))}]},
            413,
            "segments.0.data",
        ),
        ("/v1/generate", {"segments": [{"type": "text", "text": "x" * 5000}]}, 413, "segments"),
        ("/v1/generate", b" " * ((1 << 20) + 1), 413, "body"),
        ("/v1/generate", {"max_tokens": 0}, 422, "max_tokens"),
        ("/v1/generate", {"previews": 1000}, 422, "previews"),
        ("/v1/generate", {"stream": 1}, 422, "stream"),
        ("/v1/batch", b"[", 400, "body"),
        ("/v1/batch", {"requests": []}, 422, "requests"),
        ("/v1/batch", {"requests": [{}] * 33}, 422, "requests"),
        ("/v1/batch", {"requests": [{}, {"steps": 0}]}, 422, "requests.1.steps"),
        (
            "/v1/batch",
            {"requests": [{"segments": [{"type": "image", "data": "/etc/passwd"}] * 5}] * 13},
            413,
            "requests",
        ),
        ("/v1/chat/completions", b"{", 400, "body"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {**CHAT, "model": "gpt-4o"}, 404, "model"),
        ("/v1/chat/completions", {**CHAT, "n": 9}, 400, "n"),
        ("/v1/chat/completions", {**CHAT, "stop": ["x"]}, 400, "stop"),
        ("/v1/chat/completions", {**CHAT, "top_p": 0.5}, 400, "top_p"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 5000}]}, 413, "messages"),
        ("/v1/images/generations", {"prompt": "a", "size": "1024x1024"}, 400, "size"),
        ("/v1/images/generations", {"prompt": "a", "response_format": "url"}, 400, "response_format"),
        ("/v1/images/generations", {"prompt": ""}, 400, "prompt"),
    ],
)
def test_bad_requests_never_reach_the_model(path: str, body: Any, status: int, field: str) -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = await client.post(path, content=data)
        assert reply.status_code == status
        if path in ("/v1/generate", "/v1/batch"):
            check("Problem", reply.json())
            assert reply.json()["error"]["field"] == field
        else:
            check("OpenAIProblem", reply.json())
            assert reply.json()["error"]["param"] == field
        assert 'oneflow_documents_total{event="joined"}' not in desk.engine.meters.text().decode()
        assert desk.held_bytes == 0

    run(test)


def test_the_shared_budget_of_bodies_refuses_with_429() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        reply = await client.post("/v1/generate", content=b" " * 2000)
        assert reply.status_code == 429 and reply.headers["Retry-After"]
        assert desk.held_bytes == 0

    run(test, Limits(held_bytes=1000))


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Of a whole stream."""
    found = [re.fullmatch("event: (.*)\ndata: (.*)", block) for block in text.split("\n\n") if block]
    assert all(found), text
    return [(one[1], json.loads(one[2])) for one in found if one]


def test_a_batch_is_answered_as_its_requests_are_alone() -> None:
    broken: list[dict[str, Any]] = [
        {"segments": [{"type": "image", "data": "/etc/passwd"}]},
        {"segments": [{"type": "text", "text": "x" * 5000}]},
    ]
    asked = [REQUESTS[0], broken[0], *REQUESTS[1:], broken[1]]

    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        alone = [await client.post("/v1/generate", json=request) for request in asked]
        reply = await client.post("/v1/batch", json={"requests": asked})
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        *told, last = events_of(reply.text)
        assert last == ("done", {"requests": 6}) and sorted(e["index"] for _, e in told) == list(range(6))
        for name, event in told:
            expected = alone[event.pop("index")]
            if name == "refused":
                assert event.pop("status") == expected.status_code and event == expected.json()
                continue
            check("Answer", event)
            for ours, theirs in zip(event["segments"], expected.json()["segments"], strict=True):
                if ours["type"] == "text":
                    assert ours == theirs
                else:
                    assert np.abs(pixels(ours["data"]) - pixels(theirs["data"])).max() <= 1
        assert [name for name, _ in told].count("refused") == 2
        reply = await client.post("/v1/batch", json={"requests": broken})
        assert [name for name, _ in events_of(reply.text)] == ["refused", "refused", "done"]
        assert desk.held_bytes == 0 and desk.engine.meters.waiting._value.get() == 0

    run(test)


def test_openais_routes_answer_as_described() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        check("Models", (await client.get("/v1/models")).json())
        chat = (await client.post("/v1/chat/completions", json={**CHAT, "n": 3})).json()
        check("Completion", chat)
        same = (
            await client.post("/v1/generate", json={"segments": [TEXT], "target": "text", "seed": 5})
        ).json()
        assert chat["choices"][1]["message"]["content"] == "".join(s["text"] for s in same["segments"])
        both = {**CHAT, "modalities": ["text", "image"], "max_images": 2, "seed": 7}
        check("Completion", (await client.post("/v1/chat/completions", json=both)).json())
        check("Pictures", (await client.post("/v1/images/generations", json={"prompt": "a", "n": 2})).json())

    run(test)


def test_messages_are_one_prompt_in_their_order() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        address = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture()}"}}
        messages = [
            {"role": "system", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}, address]},
            {"role": "assistant", "content": "three", "images": [address]},
            {"role": "user", "content": "four"},
        ]
        chat = (await client.post("/v1/chat/completions", json={"messages": messages, "seed": 3})).json()
        image = {"type": "image", "data": picture()}
        texts = ["one", "\ntwo", None, "three", None, "four"]
        segments = [image if t is None else {"type": "text", "text": t} for t in texts]
        same = (
            await client.post("/v1/generate", json={"segments": segments, "target": "text", "seed": 3})
        ).json()
        assert chat["choices"][0]["message"]["content"] == "".join(s["text"] for s in same["segments"])

    run(test)


def test_what_breaks_inside_is_told_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("s3://bucket?key=secret")

        monkeypatch.setattr(desk.engine, "segments", broken)
        for body in (REQUESTS[0], {**REQUESTS[0], "stream": True}):
            reply = await client.post("/v1/generate", json=body)
            assert reply.status_code == (200 if "stream" in body else 500)
            assert "the server failed" in reply.text and "secret" not in reply.text
        assert 'oneflow_requests_total{status="500"} 2.0' in desk.engine.meters.text().decode()
        reply = await client.post("/v1/batch", json={"requests": REQUESTS[:2]})
        told = events_of(reply.text)
        assert [(name, e.get("status")) for name, e in told] == [("refused", 500)] * 2 + [("done", None)]
        assert "the server failed" in reply.text and "secret" not in reply.text

    run(test)


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/chat/completions"])
def test_a_silent_stream_is_kept_open(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        monkeypatch.setattr("workflows.serving.events.HEARTBEAT_S", 0.05)
        # Four at once is all that the desk has room for, so the fifth waits in silence.
        long = {"segments": [TEXT], "steps": 150}
        others = [asyncio.ensure_future(client.post("/v1/generate", json=long)) for _ in range(4)]
        while desk.engine.meters.running._value.get() < 4:
            await asyncio.sleep(0.01)
        body = REQUESTS[1] if path == "/v1/generate" else CHAT
        text = (await client.post(path, json={**body, "stream": True})).text
        assert text.count("\n: ") >= 2 and text.rstrip().splitlines()[-1].startswith("data:")
        assert [e.status_code for e in await asyncio.gather(*others)] == [200] * 4

    run(test)


def test_metrics_count_what_happened() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        for body in (*REQUESTS[:2], {**REQUESTS[0], "stream": True}):
            await client.post("/v1/generate", json=body)
        await client.post("/v1/generate", content=b"{")
        lines = desk.engine.meters.text().decode().splitlines()
        rows = {n: float(v) for n, v in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}
        assert rows['oneflow_requests_total{status="200"}'] == 3
        assert rows['oneflow_requests_total{status="400"}'] == 1
        assert rows['oneflow_segments_total{type="image"}'] == 2
        assert rows['oneflow_documents_total{event="left"}'] == 3
        assert rows["oneflow_queue_seconds_count"] == 3 and rows["oneflow_request_seconds_count"] == 4
        assert rows["oneflow_steps_total"] == rows["oneflow_step_seconds_count"] > 0
        for gauge in ("waiting", "queue_documents", "running_documents"):
            assert rows[f"oneflow_{gauge}"] == 0

    run(test)


def test_examples_of_the_description_are_served() -> None:
    async def test(desk: Desk, client: httpx2.AsyncClient) -> None:
        asked = 0
        for path, methods in document()["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for example in content.get("application/json", {}).get("examples", {}).values():
                reply = await client.post(path, json=example["value"])
                assert reply.status_code == 200, reply.text
                asked += 1
        assert asked >= 6

    run(test)


def test_the_proxy_answers_for_a_replica_that_says_nothing() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def cut(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"event: start\ndata: {}\n\n", "more_body": True})

    async def serves_own(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain"), (b"retry-after", b"7")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"no replicas"})

    async def ask(app: Any, path: str) -> httpx2.Response:
        transport = httpx2.ASGITransport(Survivor(app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.post(path, content=b"x")

    lost = asyncio.run(ask(silent, "/v1/generate"))
    assert lost.status_code == 503 and lost.headers["Retry-After"]
    check("Problem", lost.json())
    check("OpenAIProblem", asyncio.run(ask(silent, "/v1/chat/completions")).json())
    ended = asyncio.run(ask(cut, "/v1/generate"))
    assert ended.status_code == 200 and ended.text.splitlines()[-3] == "event: error"
    own = asyncio.run(ask(serves_own, "/v1/generate"))
    assert (own.status_code, own.headers["Retry-After"]) == (503, "7")
    check("Problem", own.json())
