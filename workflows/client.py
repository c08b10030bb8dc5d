"""A client of `POST /v1/generate` and `/v1/batch`: waits, tries again where that may help, says what went wrong.

with Client("http://127.0.0.1:8000") as client:
    picture = client.generate(["a red circle"], seed=5).images[0]
    for event in client.stream([picture], target="text"):
        ...
"""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import httpx2

from workflows.errors import OneFlowError

if TYPE_CHECKING:
    from PIL.Image import Image

FULL = 429
RETRIED = frozenset({502, 503, 504})
"""Statuses after which the same request may do better. Others say that it is wrong, or that the server is."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
MOST_BYTES = 256 << 20

T = TypeVar("T")
Target = Literal["image", "text", "document"]


class ServerError(OneFlowError):
    """The server did not answer, or refused. `status` is its HTTP status, None where none came."""

    def __init__(self, what: str, cause: str, mend: str, status: int | None = None) -> None:
        super().__init__(what, cause, mend)
        self.status = status
        self.retry_after_s: float | None = None
        self.attempts = 1
        """How often it was asked."""


class Stopped(ServerError):
    """The client's `stop` was set before the request was answered."""


@dataclass(frozen=True)
class Answer:
    """A document as the server made it."""

    parts: tuple[str | bytes, ...]
    """The segments as they came: texts, and PNG files."""
    model: dict[str, str]
    """name, version and run_id of the model that made it."""
    seed: int
    trace: dict[str, Any] | None
    seconds: float
    """From arrival to answer, as the server saw it."""
    attempts: int = 1
    """How often it was asked."""

    @cached_property
    def segments(self) -> tuple[str | Image, ...]:
        """The texts and images, in reading order. Raises `ServerError` where an image cannot be read."""
        return tuple(part if isinstance(part, str) else _image(part) for part in self.parts)

    @property
    def text(self) -> str:
        """The text segments, joined by nothing."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """The images, in order."""
        return tuple(s for s in self.segments if not isinstance(s, str))


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: start, queued, insertions, preview, done or error, with its JSON."""

    name: str
    data: dict[str, Any] = field(repr=False)

    @property
    def answer(self) -> Answer:
        """The document of a `done` event."""
        return _answer(self.data)

    @property
    def image(self) -> Image:
        """The picture of a `preview` event."""
        return _image(base64.b64decode(self.data["data"], validate=True))


class Client:
    """Asks one server; any number of threads may share it.

    Args:
        timeout_s: seconds that the server may be silent.
        attempts: how often a request may fail before that is told. Being sent away from a full queue (429) is no
            failure: it is asked again when Retry-After says.
        patience_s: seconds after which nothing is asked again; with 0 a full queue is told of at once.
        retried: statuses after which a request is asked again, up to `attempts` times in all.
        stop: once it is set nothing more is asked, and waits end; what is under way is still awaited.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        attempts: int = 6,
        patience_s: float = 900.0,
        retried: Set[int] = RETRIED,
        stop: threading.Event | None = None,
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {attempts}")
        self.url, self.attempts, self.patience_s = url.rstrip("/"), attempts, patience_s
        self._retried, self._stop = retried, stop or threading.Event()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        try:
            # A thread that waited for one of 100 connections would hear of a time-out.
            limits = httpx2.Limits(max_connections=None)
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits)
        except httpx2.InvalidURL as error:
            raise ServerError(url, str(error), "give an address like http://127.0.0.1:8000") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """What `GET /healthz` says: the model that is served.

        Raises:
            ServerError: no server, or one that is not ready.
        """
        said, _ = self._until_answered(lambda: self._whole("GET", "/healthz"))
        return said

    def generate(
        self,
        segments: Sequence[str | bytes | Image],
        *,
        target: Target = "image",
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        max_images: int | None = None,
        max_tokens: int | None = None,
        trace: bool = False,
    ) -> Answer:
        """One document. Segments are texts, images, or the bytes of image files.

        Raises:
            ServerError: refused, or no answer after all attempts; `Stopped` where `stop` was set.
        """
        options = {"seed": seed, "steps": steps, "guidance": guidance, "temperature": temperature}
        more = {"max_images": max_images, "max_tokens": max_tokens}
        body = request_body(segments, target=target, trace=trace, **options, **more)
        answer, attempts = self._until_answered(lambda: _answer(self._whole("POST", "/v1/generate", body)))
        return replace(answer, attempts=attempts)

    def stream(
        self, segments: Sequence[str | bytes | Image], *, target: Target = "image", **options: Any
    ) -> Iterator[Event]:
        """The document's growth as it happens; `done` is the last event. `options` are those of `generate`, and
        `previews`. Leaving the loop cancels the generation.

        Raises:
            ServerError: refused, broken off, or an `error` event. What has begun is not tried again.
        """
        body = request_body(segments, target=target, stream=True, **options)
        reply, _ = self._until_answered(lambda: self._open("POST", "/v1/generate", body))
        yield from self._events(reply)

    def _events(self, reply: httpx2.Response) -> Iterator[Event]:
        """Those of a stream up to `done`; closes it."""
        last = ""
        with closing(reply):
            try:
                for told in httpx2.EventSource(reply, MOST_BYTES):
                    event = Event(told.event, _object(told.data))
                    last = event.name
                    if last == "error":
                        raise _refusal(self.url, None, event.data)
                    yield event
            except httpx2.HTTPError as error:
                raise ServerError(self.url, f"the stream broke: {error!r}", "ask again") from None
        if last != "done":
            raise ServerError(self.url, "the stream ended before all was done", "ask again")

    def batch(self, bodies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Answer | ServerError]]:
        """Many documents in one request: each with its place in `bodies`, as soon as it is made or refused.

        `bodies` are of `request_body`, 32 at most. A refusal has the status that `generate` would have
        had. Nothing is tried again, but after a full queue.

        Raises:
            ServerError: refused as a whole, or broken off; what came before stands. `Stopped` where `stop` was set.
        """
        reply, attempts = self._until_answered(
            lambda: self._open("POST", "/v1/batch", {"requests": list(bodies)}), most=1
        )
        for event in self._events(reply):
            if event.name not in ("answer", "refused"):
                continue
            index = event.data.get("index")
            if not isinstance(index, int) or not 0 <= index < len(bodies):
                raise _unreadable(ValueError(f"index {index!r}"))
            if event.name == "answer":
                yield index, replace(event.answer, attempts=attempts)
            else:
                status = event.data.get("status")
                yield index, _refusal(self.url, status if isinstance(status, int) else None, event.data)

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with closing(self._open(method, path, body)) as reply, self._explained():
            data = bytearray()
            for chunk in reply.iter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise ServerError(
                        self.url, f"the answer is longer than {MOST_BYTES} bytes", "ask for less", 200
                    )
        return _object(bytes(data))

    def _until_answered(self, ask: Callable[[], T], most: int | None = None) -> tuple[T, int]:
        """What `ask` gave in the end, and how often it was called; it may fail `most` times, or `attempts`."""
        begun, failures, attempt = time.monotonic(), 0, 0
        while not self._stop.is_set():
            attempt += 1
            try:
                return ask(), attempt
            except ServerError as error:
                error.attempts = attempt
                full = error.status == FULL
                failures += not full
                again = full or error.status is None or error.status in self._retried
                pause = _pause(attempt, error)
                late = time.monotonic() - begun + pause > self.patience_s
                if not again or late or failures == (most or self.attempts):
                    raise
                self._stop.wait(pause)
        raise Stopped(self.url, "stopped before it answered", "ask again")

    def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        """An answer with status 200 whose body is yet to be read."""
        with self._explained():
            reply = self._http.send(self._http.build_request(method, path, json=body), stream=True)
            if reply.status_code == 200:
                return reply
            with closing(reply):
                said = reply.read()[:4000]
        refusal = _refusal(self.url, reply.status_code, said)
        # A date, which no server of ours sends, counts as none.
        with suppress(ValueError):
            refusal.retry_after_s = max(0.0, float(reply.headers.get("retry-after", "")))
        raise refusal

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ServerError(self.url, cause, "see that the address is right and the server runs") from None


def request_body(segments: Sequence[str | bytes | Image], **fields: Any) -> dict[str, Any]:
    """The JSON of `POST /v1/generate`; fields that are None are left to the server."""
    return {"segments": [_part(s) for s in segments], **{k: v for k, v in fields.items() if v is not None}}


def _part(segment: str | bytes | Image) -> dict[str, str]:
    if isinstance(segment, str):
        return {"type": "text", "text": segment}
    if not isinstance(segment, bytes):
        buffer = io.BytesIO()
        segment.save(buffer, "PNG")
        segment = buffer.getvalue()
    return {"type": "image", "data": base64.b64encode(segment).decode("ascii")}


def _answer(value: Mapping[str, Any]) -> Answer:
    try:
        parts = tuple(
            str(s["text"]) if s["type"] == "text" else base64.b64decode(s["data"], validate=True)
            for s in value["segments"]
        )
        model = {str(k): str(v) for k, v in value["model"].items()}
        return Answer(parts, model, value["seed"], value["trace"], value["seconds"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(error) from None


def _image(data: bytes) -> Image:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(error) from None
    return image


def _unreadable(error: Exception) -> ServerError:
    cause = f"the answer cannot be read: {type(error).__name__}: {error}"
    return ServerError("the server", cause, "ask a server of this version", 200)


def _object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ServerError("the server", f"its answer is no JSON: {error}", "check the address", 200) from None
    if not isinstance(value, dict):
        raise ServerError("the server", "its answer is no JSON object", "check the address", 200)
    return value


def _refusal(url: str, status: int | None, said: bytes | Mapping[str, Any]) -> ServerError:
    try:
        value = json.loads(said) if isinstance(said, bytes) else said
        told = value["error"]
        cause, mend = f"{told['field']} {told['cause']}".strip(), str(told["mend"])
    except (ValueError, KeyError, TypeError):
        words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        cause, mend = words[:300], "see the server's log"
    return ServerError(url, f"HTTP {status}: {cause}" if status else cause, mend, status)


def _pause(attempt: int, error: ServerError) -> float:
    """Seconds before the next attempt: what a full queue asks for; else longer each time, and no less than that.

    Spread, so that those who were refused together do not come back together.
    """
    wait = error.retry_after_s or 0.0
    if not wait or error.status != FULL:
        wait = max(wait, FIRST_WAIT_S * 2 ** min(attempt - 1, 10))
    return min(wait, LONGEST_WAIT_S) * random.uniform(1.0, 1.25)
