"""The client against a real HTTP server that fails as it is told to."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workflows.client import RETRIED, Answer, Client, ServerError, Stopped, request_body

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))


def png() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


DONE = {
    "segments": [
        {"type": "text", "text": "one "},
        {"type": "image", "data": base64.b64encode(png()).decode(), "width": 8, "height": 8},
        {"type": "text", "text": "two"},
    ],
    "model": {"name": "m", "version": "2", "run_id": "r"},
    "seed": 5,
    "trace": None,
    "seconds": 0.5,
}
Step = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body of an answer; None breaks the connection."""


class Server:
    """Gives its steps one after the other, the last one for ever; notes what it was asked, and when."""

    def __init__(self, *steps: Step) -> None:
        self.steps, self.asked, self.times = list(steps), [], []

    def url(self, httpd: ThreadingHTTPServer) -> str:
        return f"http://127.0.0.1:{httpd.server_port}"


Serve = Callable[..., tuple[str, Server]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[ThreadingHTTPServer] = []

    def start(*steps: Step) -> tuple[str, Server]:
        server = Server(*steps)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                server.asked.append((dict(self.headers), self.rfile.read(length)))
                server.times.append(time.monotonic())
                step = server.steps.pop(0) if len(server.steps) > 1 else server.steps[0]
                self.close_connection = True
                if step is None:
                    return
                status, headers, body = step
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(httpd)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        return server.url(httpd), server

    yield start
    for httpd in started:
        httpd.shutdown()
        httpd.server_close()


def whole(value: Any = DONE, status: int = 200, **headers: str) -> Step:
    body = json.dumps(value).encode()
    return status, {"Content-Length": str(len(body)), **headers}, body


def problem(status: int, **headers: str) -> Step:
    return whole({"error": {"field": "seed", "cause": "no seed", "mend": "send one"}}, status, **headers)


def events(*told: tuple[str, Any], cut: bool = False) -> Step:
    body = b": hello\n\n" + b"".join(f"event: {n}\ndata: {json.dumps(d)}\n\n".encode() for n, d in told)
    length = {"Content-Length": str(len(body) + 100)} if cut else {}
    return 200, {"Content-Type": "text/event-stream", **length}, body


def same(answer: Answer) -> None:
    assert answer.text == "one two" and (answer.seed, answer.model["version"]) == (5, "2")
    assert np.array_equal(np.asarray(answer.images[0]), np.asarray(PICTURE))


def test_a_request_says_what_was_asked_and_the_answer_is_read(serve: Serve) -> None:
    url, server = serve(whole())
    with Client(url, api_key="secret") as client:
        same(client.generate(["a", PICTURE, png()], target="document", seed=5, steps=4))
    headers, body = server.asked[0]
    assert headers["Authorization"] == "Bearer secret"
    sent = json.loads(body)
    pictures = [s for s in sent.pop("segments") if s["type"] == "image"]
    assert sent == {"target": "document", "seed": 5, "steps": 4, "trace": False}
    for part in pictures:
        read = Image.open(io.BytesIO(base64.b64decode(part["data"])))
        assert np.array_equal(np.asarray(read), np.asarray(PICTURE))


@pytest.mark.parametrize("fault", [None, problem(429), problem(502), problem(503), problem(504)])
def test_what_may_pass_is_tried_again(serve: Serve, fault: Step) -> None:
    url, server = serve(fault, whole())
    with Client(url) as client:
        answer = client.generate(["a"])
    same(answer)
    assert answer.attempts == len(server.asked) == 2


def test_it_waits_as_long_as_the_server_asks(serve: Serve) -> None:
    url, server = serve(problem(429, **{"Retry-After": "2"}), whole())
    with Client(url) as client:
        client.generate(["a"])
    assert server.times[1] - server.times[0] >= 2


def test_a_full_queue_costs_no_attempt_until_patience_ends(serve: Serve) -> None:
    full = problem(429, **{"Retry-After": "0.05"})
    url, server = serve(full, full, full, whole())
    with Client(url, attempts=1) as client:
        assert client.generate(["a"]).attempts == 4
    url, server = serve(full)
    with Client(url, patience_s=0) as client, pytest.raises(ServerError) as caught:
        client.generate(["a"])
    assert (caught.value.status, caught.value.attempts, len(server.asked)) == (429, 1, 1)


def test_a_stop_ends_waits_and_asks_no_more(serve: Serve) -> None:
    url, server = serve(problem(429, **{"Retry-After": "60"}))
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    with Client(url, stop=stop) as client:
        for _ in range(2):
            with pytest.raises(Stopped):
                client.generate(["a"])
    assert time.monotonic() - begun < 30 and len(server.asked) == 1


def test_what_else_is_tried_again_can_be_said(serve: Serve) -> None:
    url, server = serve(problem(500), whole())
    with Client(url, retried=RETRIED | {500}) as client:
        assert client.generate(["a"]).attempts == len(server.asked) == 2


def test_the_pieces_of_an_answer_are_had_as_they_came(serve: Serve) -> None:
    broken = {**DONE, "segments": [{"type": "image", "data": base64.b64encode(b"no picture").decode()}]}
    for value, parts in ((DONE, ("one ", png(), "two")), (broken, (b"no picture",))):
        url, _ = serve(whole(value))
        with Client(url) as client:
            answer = client.generate(["a"])
        assert answer.parts == parts
    with pytest.raises(ServerError, match="cannot be read"):
        _ = answer.images


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 500])
def test_what_will_not_pass_is_told_at_once(serve: Serve, status: int) -> None:
    url, server = serve(problem(status))
    with Client(url) as client, pytest.raises(ServerError, match="no seed; send one") as caught:
        client.generate(["a"])
    assert caught.value.status == status and len(server.asked) == 1


def test_attempts_end(serve: Serve) -> None:
    url, server = serve(None)
    with Client(url, attempts=2) as client, pytest.raises(ServerError) as caught:
        client.generate(["a"])
    assert caught.value.status is None and len(server.asked) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"segments": [{"type": "image"}]}'])
def test_answers_that_are_none_are_told(serve: Serve, body: bytes) -> None:
    url, _ = serve((200, {"Content-Length": str(len(body))}, body))
    with Client(url) as client, pytest.raises(ServerError):
        client.generate(["a"])


def test_a_stream_is_read_event_by_event(serve: Serve) -> None:
    preview = {"id": 1, "data": base64.b64encode(png()).decode()}
    url, server = serve(problem(503), events(("start", {"id": "x"}), ("preview", preview), ("done", DONE)))
    with Client(url) as client:
        told = list(client.stream(["a"], target="image", previews=2))
    assert [e.name for e in told] == ["start", "preview", "done"]
    assert told[1].image.size == (8, 8)
    same(told[2].answer)
    sent = json.loads(server.asked[1][1])
    assert sent == {**request_body(["a"]), "target": "image", "stream": True, "previews": 2}


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            events(("start", {}), ("error", {"error": {"field": "", "cause": "gone", "mend": "again"}})),
            "gone",
        ),
        (events(("start", {})), "ended before"),
        (events(("start", {}), cut=True), "broke"),
    ],
)
def test_a_stream_that_breaks_is_told_and_not_repeated(serve: Serve, step: Step, says: str) -> None:
    url, server = serve(step)
    with Client(url) as client, pytest.raises(ServerError, match=says):
        list(client.stream(["a"]))
    assert len(server.asked) == 1


def test_no_server_is_told() -> None:
    with Client("http://127.0.0.1:9", attempts=1) as client, pytest.raises(ServerError, match="127.0.0.1:9"):
        client.health()


@pytest.mark.parametrize("url", ["http://[", "nonsense", "ftp://x"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ServerError), Client(url, attempts=1) as client:
        client.health()
