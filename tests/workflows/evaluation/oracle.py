"""A deployment that speaks our HTTP and needs no network of neurons: it reads prompts and pictures exactly."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations, product
from typing import Any

import numpy as np
from PIL import Image

from oneflow_core.shapes import Mention, Object, Scene, answer, canonical_caption, parse, read, render

CELLS = list(product(range(3), repeat=2))


def scene_for(mentions: Sequence[Mention]) -> Scene:
    """Some scene that the mentions describe."""
    for cells in permutations(CELLS, len(mentions)):
        if all(m.row in (None, r) and m.col in (None, c) for m, (r, c) in zip(mentions, cells, strict=True)):
            return Scene(
                Object(r, c, m.shape or "star", m.colour or "red", m.size or "small")
                for m, (r, c) in zip(mentions, cells, strict=True)
            )
    raise AssertionError(mentions)


def png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(scene)).save(buffer, "PNG")
    return buffer.getvalue()


def _image(scene: Scene) -> dict[str, Any]:
    return {"type": "image", "data": base64.b64encode(png(scene)).decode(), "width": 64, "height": 64}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def respond(body: dict[str, Any], skill: float) -> list[dict[str, Any]]:
    """What an exact model makes of a request; with less `skill` a share of requests gets a wrong answer."""
    segments = body["segments"]
    texts = [s["text"] for s in segments if s["type"] == "text"]
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(s["data"])))) for s in segments if "data" in s
    ]
    fails = np.random.default_rng(body["seed"]).random() >= skill
    if fails or not segments:
        return (
            [_image(Scene([Object(1, 1, "star", "red", "small")]))]
            if body["target"] == "image"
            else [_text("a dog")]
        )
    if body["target"] == "image":
        return [_image(scene_for(parse(texts[0]) or []))]
    if body["target"] == "document":
        scene = scene_for(parse(texts[0]) or [])
        free = next(cell for cell in CELLS if cell not in {o.cell for o in scene})
        if len(scene) == 4:
            gone = scene.objects[0]
            return [
                _image(scene),
                _text(f"Remove the {gone.colour} {gone.shape}."),
                _image(Scene(scene.objects[1:])),
            ]
        new = Object(*free, "ring", "black", "large")
        place = canonical_caption(Scene([new])).split("ring ")[1]
        return [_image(scene), _text(f"Add a large black ring {place}."), _image(Scene([*scene, new]))]
    if not images:
        return [_text("yes")]
    shown = read(images[0])
    assert shown is not None
    return [_text((answer(texts[0], shown) or "") if texts else canonical_caption(shown))]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Deployment
    under_way = 0

    def do_GET(self) -> None:
        self._reply(200, json.dumps({"status": "ok", "model": self.server.model}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["requests"] if self.path == "/v1/batch" else [body]
        with self.server.lock:
            self.server.bodies += asked
            self.server.at_once += len(asked)
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            self.server.keys.append(self.headers.get("Authorization"))
            trouble = self.server.troubles.pop(0) if self.server.troubles else None
        self.under_way = len(asked)
        if trouble is not None:
            self._reply(*trouble)
            return
        if self.path == "/v1/batch" and not self.server.batches:
            self._reply(404, b"no such route")
            return
        if self.path == "/v1/batch":
            self._stream(body["requests"])
            return
        time.sleep(self.server.slow_s)
        self._reply(200, json.dumps(self._answer(body)).encode())

    def _over(self) -> None:
        """Before the last of an answer goes out: who has read it may ask again at once."""
        with self.server.lock:
            self.server.at_once -= self.under_way
        self.under_way = 0

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        segments = respond(body, self.server.skill)
        return {"segments": segments, "trace": None, "model": self.server.model, "seed": 0, "seconds": 0.0}

    def _stream(self, requests: list[dict[str, Any]]) -> None:
        """The last one first; the connection ends with it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for index in reversed(range(len(requests))):
            if self.server.cuts and index < len(requests) // 2:
                self._over()
                return
            time.sleep(self.server.slow_s)
            trouble = self.server.inner.pop(index, None)
            if trouble is None:
                self._event("answer", {"index": index, **self._answer(requests[index])})
            else:
                status, cause = trouble
                error = {"field": "", "cause": cause, "mend": "none"}
                self._event("refused", {"index": index, "status": status, "error": error})
        self._over()
        self._event("done", {"requests": len(requests)})

    def _event(self, name: str, value: dict[str, Any]) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def _reply(self, status: int, data: bytes) -> None:
        self._over()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429 and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Deployment(ThreadingHTTPServer):
    """Answers at `url` after `slow_s`; first gives each of `troubles`, (status, body), once.

    In a batch it gives each of `inner`, (status, cause) by index, once; with `cuts` it answers half of each; without
    `batches` it knows none. `bodies` are all that came, those of a batch one by one; `keys` are of requests.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, model: dict[str, str], skill: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.skill, self.retry_after = model, skill, ""
        self.slow_s = 0.0
        self.troubles: list[tuple[int, bytes]] = []
        self.inner: dict[int, tuple[int, str]] = {}
        self.cuts, self.batches = False, True
        self.at_once = self.most_at_once = 0
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def deployment(
    name: str = "oracle", version: str = "", run_id: str = "", skill: float = 1.0
) -> Iterator[Deployment]:
    server = Deployment({"name": name, "version": version, "run_id": run_id}, skill)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
