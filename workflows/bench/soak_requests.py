"""The requests of the soak: each asks once, and says what came and whether that is what should come."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image

from workflows.bench.soak_answers import Answer, Book, of_pictures, of_segments

DISTINCT = 12
"""Requests of each kind; every one comes again and again."""
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
MOST_EVENT_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt. `status` is 0 where the client left on purpose and -1 where nothing came."""

    status: int
    wrong: str = ""
    """What is not as it should be."""
    retry_s: float = 0.0


def text_of(number: int) -> str:
    """One of twelve short descriptions."""
    return f"a {COLOURS[number % 4]} {SHAPES[number % 3]}"


def picture_of(number: int) -> str:
    """A PNG in base64: a rectangle on a ground, different for each number."""
    image = Image.new("RGB", (96, 64 + number), (20 * number % 256, 200 - 7 * number, 90))
    image.paste((250, 250, 10 * number), (8 + 2 * number, 12, 60, 50))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def generation(kind: str, number: int) -> dict[str, Any]:
    """The body of `POST /v1/generate`: caption, picture or document."""
    text = {"type": "text", "text": text_of(number)}
    if kind == "caption":
        own: dict[str, Any] = {
            "segments": [{"type": "image", "data": picture_of(number)}],
            "target": "text",
            "max_tokens": 24,
        }
    elif kind == "picture":
        own = {"segments": [text], "target": "image", "steps": 8}
    else:
        own = {"segments": [text], "target": "document", "steps": 16, "max_images": 2, "max_tokens": 48}
    return {**own, "seed": 1000 * ("caption", "picture", "document").index(kind) + number, "trace": True}


class Asker:
    """One client with its own connections."""

    def __init__(self, url: str, book: Book, patience_s: float) -> None:
        self.book, self.at = book, urlsplit(url)
        self.http = httpx2.Client(base_url=url, timeout=patience_s)

    def close(self) -> None:
        """Its connections with it."""
        self.http.close()

    def whole(self, kind: str, number: int) -> Outcome:
        """One JSON answer."""
        return self._asked(
            "/v1/generate",
            generation(kind, number),
            lambda value: self._hear(kind, number, of_segments(value)),
        )

    def chat(self, number: int) -> Outcome:
        """Two choices, each with a seed of its own: they must not change places."""
        body = {
            "messages": [{"role": "user", "content": text_of(number)}],
            "modalities": ["image"],
            "n": 2,
            "seed": 5000 + 10 * number,
            "steps": 8,
        }

        def told(value: Any) -> str:
            if [c["index"] for c in value["choices"]] != [0, 1]:
                return "lost or doubled choices"
            wrong = ""
            for at, choice in enumerate(value["choices"]):
                data = [i["image_url"]["url"].partition(",")[2] for i in choice["message"]["images"]]
                wrong = wrong or self.book.hear(f"seed {5000 + 10 * number + at}", of_pictures(data))
            return wrong

        return self._asked("/v1/chat/completions", body, told)

    def pictures(self, number: int) -> Outcome:
        """The same pictures as the choices of `chat`, over another route."""
        first = 5000 + 10 * number
        body = {"prompt": text_of(number), "n": 2, "seed": first, "steps": 8}

        def told(value: Any) -> str:
            if len(value["data"]) != 2:
                return "lost or doubled pictures"
            heard = [
                self.book.hear(f"seed {first + at}", of_pictures([picture["b64_json"]]))
                for at, picture in enumerate(value["data"])
            ]
            return "".join(heard)

        return self._asked("/v1/images/generations", body, told)

    def stream(self, kind: str, number: int, previews: int = 0) -> Outcome:
        """Events up to `done`, which is what comes without a stream."""
        body = {**generation(kind, number), "stream": True, "previews": previews}
        with self.http.stream("POST", "/v1/generate", json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                return _refusal(reply)
            return self._followed(reply, kind, number)

    def _followed(self, reply: httpx2.Response, kind: str, number: int) -> Outcome:
        names: list[str] = []
        words: list[dict[str, Any]] = []
        last: dict[str, Any] = {}
        for event in httpx2.EventSource(reply, MOST_EVENT_BYTES):
            last = json.loads(event.data)
            names.append(event.event)
            if event.event == "insertions":
                for gone in last["deletions"]:
                    if words.pop(gone["position"])["id"] != gone["id"]:
                        return Outcome(200, "a deletion of another element than it says")
                for new in last["insertions"]:
                    words.insert(new["position"], new)
        if names[-1:] == ["error"]:
            return Outcome(503 if "gone" in last["error"]["cause"] else 500)
        if [names.count(n) for n in ("start", "done")] != [1, 1] or (names[0], names[-1]) != (
            "start",
            "done",
        ):
            return Outcome(200, f"a stream of {names[:1]}...{names[-1:]}")
        spoken = "".join(w["token"] for w in words if not w["image"])
        text = "".join(s["text"] for s in last["segments"] if s["type"] == "text")
        if spoken != text and "\ufffd" not in spoken:
            return Outcome(200, "the insertions do not make the text")
        return Outcome(200, self._hear(kind, number, of_segments(last)))

    def leave_stream(self, number: int) -> Outcome:
        """Goes away in the middle of a stream."""
        body = {**generation("picture", number), "steps": 60, "stream": True, "previews": 2}
        with self.http.stream("POST", "/v1/generate", json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                return _refusal(reply)
            for event in httpx2.EventSource(reply, MOST_EVENT_BYTES):
                if event.event in ("insertions", "preview"):
                    break
        return Outcome(0)

    def leave_early(self, number: int, after_s: float) -> Outcome:
        """Does not wait for the answer."""
        try:
            reply = self.http.post("/v1/generate", json=generation("document", number), timeout=after_s)
        except httpx2.TimeoutException:
            return Outcome(0)
        return _refusal(reply) if reply.status_code != 200 else Outcome(200)

    def leave_sending(self, rng: random.Random) -> Outcome:
        """Goes away in the middle of its own request."""
        body = json.dumps(generation("caption", 0)).encode()
        with self._wire() as wire:
            wire.sendall(self._head(len(body)) + body[: rng.randrange(len(body))])
        return Outcome(0)

    def slow(self, until: Callable[[], bool]) -> Outcome:
        """A byte a second, until 408 comes."""
        with self._wire() as wire:
            wire.sendall(self._head(100_000))
            wire.settimeout(1.0)
            while not until():
                try:
                    said = wire.recv(4096)
                    return Outcome(
                        int(said.split()[1]) if said else -1, "" if said else "closed without a word"
                    )
                except TimeoutError:
                    wire.sendall(b" ")
        return Outcome(0)

    def bad(self, rng: random.Random) -> Outcome:
        """Something that is to be refused, and how."""
        body, status = rng.choice(BAD)
        reply = self.http.post("/v1/generate", content=body)
        if reply.status_code in (status, 503):
            return _refusal(reply)
        refused = _refusal(reply)
        return refused if reply.status_code == 429 else Outcome(reply.status_code, f"should be {status}")

    def look(self, path: str) -> Outcome:
        """A route that needs no model."""
        reply = self.http.get(path)
        return Outcome(200) if reply.status_code == 200 and reply.content else _refusal(reply)

    def _asked(self, route: str, body: dict[str, Any], told: Callable[[Any], str]) -> Outcome:
        reply = self.http.post(route, json=body)
        return Outcome(200, told(reply.json())) if reply.status_code == 200 else _refusal(reply)

    def _hear(self, kind: str, number: int, answer: Answer) -> str:
        return self.book.hear(f"{kind} {number}", answer)

    def _wire(self) -> socket.socket:
        return socket.create_connection((self.at.hostname or "", self.at.port or 0), timeout=60)

    def _head(self, length: int) -> bytes:
        return f"POST /v1/generate HTTP/1.1\r\nHost: {self.at.netloc}\r\nContent-Length: {length}\r\n\r\n".encode()


def _refusal(reply: httpx2.Response) -> Outcome:
    """A refusal has its words, and says when to come again where it is for now only."""
    wait = reply.headers.get("retry-after", "")
    try:
        told = bool(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        told = False
    wrong = "" if told else "a refusal without words"
    if reply.status_code in (429, 503) and not (wait.isdigit() and int(wait) >= 1):
        wrong = "no Retry-After"
    return Outcome(reply.status_code, wrong, float(wait) if wait.isdigit() else 1.0)


def once(attempt: Callable[[], Outcome]) -> tuple[Outcome, float]:
    """The outcome and its seconds; a broken connection is one too."""
    begun = time.perf_counter()
    try:
        outcome = attempt()
    except httpx2.TimeoutException:
        outcome = Outcome(-1, "nothing came in time")
    except (httpx2.HTTPError, OSError) as error:
        outcome = Outcome(-1, f"broken off: {type(error).__name__}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        outcome = Outcome(200, f"an answer that cannot be read: {type(error).__name__}")
    return outcome, time.perf_counter() - begun


BAD: tuple[tuple[bytes, int], ...] = (
    (b"", 400),
    (b"\x00\xff{", 400),
    (b"[" * 5000, 400),
    (b'{"guidance": NaN}', 422),
    (b'{"seed": 1e999}', 422),
    (b'{"steps": 1000000000000}', 422),
    (b'{"target": "\\ud800"}', 400),
    (b'{"segments": [{"type": "image", "data": "/etc/passwd"}]}', 422),
    (b'{"segments": [{"type": "image", "url": "http://127.0.0.1:1/x"}]}', 422),
    (
        b'{"segments": [{"type": "image", "data": "%s"}]}'
        % base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)),
        422,
    ),
    (json.dumps({"segments": [{"type": "text", "text": "x" * 5000}]}).encode(), 413),
    (b" " * ((16 << 20) + 1), 413),
)
