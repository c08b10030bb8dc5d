"""A real uvicorn with the proxy's protocol, and clients that write to its sockets by hand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import uvicorn

from workflows.serving import protocol
from workflows.serving.openapi import document

HOST = "127.0.0.1"
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path, the number of headers and the length of the body; `/deaf` before it is there."""
    size, more = 0, scope["path"] != "/deaf"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = json.dumps([scope["path"], len(scope["headers"]), size]).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    monkeypatch.setattr(protocol, "LINGER_S", 2.0)
    config = uvicorn.Config(echo, http=protocol.BoundedProtocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server((HOST, 0)) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        yield door.getsockname()[1]
        server.should_exit = True
        thread.join()


def said(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back up to the end of the connection."""
    with socket.create_connection((HOST, port), timeout=120) as wire:
        answer = bytearray()
        try:
            for part in parts:
                wire.sendall(part)
                time.sleep(pause_s)
            while part := wire.recv(65536):
                answer += part
        except ConnectionError:
            pass
        return bytes(answer)


def test_good_requests_are_served_one_after_the_other(port: int) -> None:
    last = b"POST /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde"
    answer = said(port, GET % b"a", GET % b"b" + GET % b"c", last, pause_s=1.2)
    assert [answer.count(b'["/%s", 1, 0]' % name) for name in (b"a", b"b", b"c")] == [1, 1, 1]
    assert answer.endswith(b'["/last", 3, 5]')


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET / HTTP/1.1\r\nX: ", b"a" * (1 << 16)),
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * (1 << 13)),
        (b"GET /", b"a" * (1 << 16)),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * (1 << 20)),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * (1 << 20)),
    ],
    ids=["one header", "many headers", "path", "size of a chunk", "header behind a body"],
)
def test_what_has_no_end_is_cut_off(port: int, head: bytes, piece: bytes) -> None:
    sent = 0
    with socket.create_connection((HOST, port), timeout=120) as wire:
        wire.sendall(head)
        with pytest.raises(ConnectionError):
            while sent < 256 << 20:
                wire.sendall(piece)
                sent += len(piece)
    assert sent < 64 << 20
    assert said(port, b"GET /next HTTP/1.1\r\nConnection: close\r\n\r\n").endswith(b'["/next", 1, 0]')


def test_a_refusal_has_words(port: int) -> None:
    answer = said(port, b"GET /" + b"a" * protocol.HEAD_BYTES)
    assert answer.startswith(b"HTTP/1.1 431 ")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    whole = document()
    for methods in whole["paths"].values():
        for operation in methods.values():
            schema = operation["responses"]["431"]["content"]["application/json"]["schema"]
            jsonschema.validate(told, {**schema, "components": whole["components"]})


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nX: y\r\n", GET % b"" + b"GET / HT"])
def test_a_head_that_does_not_arrive_is_given_up(port: int, begun: bytes) -> None:
    answer = said(port, begun)
    assert answer.count(b"HTTP/1.1 408 ") == 1
    assert answer.count(b'["/", 1, 0]') == begun.count(GET % b"")


def test_a_body_may_take_longer_than_a_head(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    assert said(port, head, b"ab", b"cd", pause_s=0.8).endswith(b'["/", 3, 4]')


def test_small_chunks_are_a_body_like_any_other(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert said(port, head + b"1\r\na\r\n" * 100_000 + b"0\r\nX: y\r\n\r\n").endswith(b'["/", 3, 100000]')


def test_who_goes_on_sending_after_the_answer_is_left(port: int) -> None:
    head = b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with socket.create_connection((HOST, port), timeout=120) as wire:
        wire.sendall(head)
        assert b'["/deaf", 2, 0]' in wire.recv(65536)
        with pytest.raises(ConnectionError):
            for _ in range(200):
                wire.sendall(b"a")
                time.sleep(0.05)


def test_a_body_that_comes_after_its_answer_leaves_the_connection_to_the_next_request(port: int) -> None:
    head = b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    last = b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = said(port, head, b"abcd", b"", b"", b"", last, pause_s=0.2)
    assert answer.count(b'["/deaf", 2, 0]') == 1 and answer.endswith(b'["/last", 1, 0]')
