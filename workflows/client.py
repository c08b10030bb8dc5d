"""A client of `POST /v1/generate`: waits, tries again where that may help, and tells what went wrong in words.

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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import httpx2

from workflows.errors import OneFlowError

if TYPE_CHECKING:
    from PIL.Image import Image

RETRIED = frozenset({429, 502, 503, 504})
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A document as the server made it."""

    segments: tuple[str | Image, ...]
    model: dict[str, str]
    """name, version and run_id of the model that made it."""
    seed: int
    trace: dict[str, Any] | None
    seconds: float
    """From arrival to answer, as the server saw it."""
    attempts: int = 1

    @property
    def text(self) -> str:
        """The text segments, joined by nothing."""
        return "".join(s for s in self.segments if isinstance(s, str))

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
        return _answer(self.data, 1)

    @property
    def image(self) -> Image:
        """The picture of a `preview` event."""
        return _image(self.data["data"])


class Client:
    """Asks one server. 429 (after its Retry-After), 502, 503, 504 and broken connections are tried again."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0, attempts: int = 6
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {attempts}")
        self.url, self.attempts = url.rstrip("/"), attempts
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)
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
        data, _ = self._call("GET", "/healthz")
        return _object(data)

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
            ServerError: refused, or no answer after all attempts.
        """
        options = {"seed": seed, "steps": steps, "guidance": guidance, "temperature": temperature}
        more = {"max_images": max_images, "max_tokens": max_tokens}
        body = request_body(segments, target=target, trace=trace, **options, **more)
        data, attempts = self._call("POST", "/v1/generate", body)
        return _answer(_object(data), attempts)

    def stream(
        self, segments: Sequence[str | bytes | Image], *, target: Target = "image", **options: Any
    ) -> Iterator[Event]:
        """The document's growth as it happens; `done` is the last event. `options` are those of `generate`, and
        `previews`. Leaving the loop cancels the generation.

        Raises:
            ServerError: refused, broken off, or an `error` event. What has begun is not tried again.
        """
        body = request_body(segments, target=target, stream=True, **options)
        reply, _ = self._retried(lambda: self._open("POST", "/v1/generate", body))
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
            raise ServerError(self.url, "the stream ended before the document was done", "ask again")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[bytes, int]:
        """The whole answer, and how many attempts it took."""

        def whole() -> bytes:
            with closing(self._open(method, path, body)) as reply, self._explained():
                data = bytearray()
                for chunk in reply.iter_bytes():
                    data += chunk
                    if len(data) > MOST_BYTES:
                        cause = f"the answer is longer than {MOST_BYTES} bytes"
                        raise ServerError(self.url, cause, "ask for less", reply.status_code)
                return bytes(data)

        return self._retried(whole)

    def _retried(self, ask: Callable[[], T]) -> tuple[T, int]:
        for attempt in range(1, self.attempts + 1):
            try:
                return ask(), attempt
            except ServerError as error:
                if attempt == self.attempts or not (error.status is None or error.status in RETRIED):
                    raise
                time.sleep(_pause(attempt, error.retry_after_s))
        raise AssertionError("unreachable")

    def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        """An answer with status 200 whose body is yet to be read."""
        with self._explained():
            reply = self._http.send(self._http.build_request(method, path, json=body), stream=True)
            if reply.status_code == 200:
                return reply
            with closing(reply):
                said = reply.read()[:4000]
        raise _refusal(self.url, reply, said)

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


def _answer(value: Mapping[str, Any], attempts: int) -> Answer:
    try:
        segments = tuple(s["text"] if s["type"] == "text" else _image(s["data"]) for s in value["segments"])
        model = {str(k): str(v) for k, v in value["model"].items()}
        return Answer(segments, model, value["seed"], value["trace"], value["seconds"], attempts)
    except (KeyError, TypeError, ValueError, OSError) as error:
        cause = f"the answer cannot be read: {type(error).__name__}: {error}"
        raise ServerError("the server", cause, "ask a server of this version") from None


def _image(data: str) -> Image:
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",))
    image.load()
    return image


def _object(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ServerError("the server", f"its answer is no JSON: {error}", "check the address") from None
    if not isinstance(value, dict):
        raise ServerError("the server", "its answer is no JSON object", "check the address")
    return value


def _refusal(url: str, reply: httpx2.Response | None, said: bytes | Mapping[str, Any]) -> ServerError:
    try:
        value = json.loads(said) if isinstance(said, bytes) else said
        told = value["error"]
        cause, mend = f"{told['field']} {told['cause']}".strip(), str(told["mend"])
    except (ValueError, KeyError, TypeError):
        cause, mend = str(said)[:300], "see the server's log"
    status = None if reply is None else reply.status_code
    error = ServerError(url, f"HTTP {status}: {cause}" if status else cause, mend, status)
    wait = reply.headers.get("retry-after", "") if reply is not None else ""
    error.retry_after_s = float(wait) if wait.isdigit() else None
    return error


def _pause(attempt: int, asked_s: float | None) -> float:
    """Seconds before the next attempt: longer each time, and no less than the server asked for.

    Spread, so that those who were refused together do not come back together.
    """
    wait = max(FIRST_WAIT_S * 2 ** (attempt - 1), asked_s or 0.0)
    return min(wait, LONGEST_WAIT_S) * random.uniform(1.0, 1.25)
