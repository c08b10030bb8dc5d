"""Bodies of POST requests that should not be: what is sent, and the statuses that may come back."""

from __future__ import annotations

import base64
import functools
import json
import random
from collections.abc import Callable
from typing import Any

from workflows.bench.garbage_images import CHEAP, COSTLY, valid

ROUTES = ("/v1/generate", "/v1/chat/completions", "/v1/images/generations")
REFUSED = frozenset({400, 413, 422})
ANY = REFUSED | {200, 404}
"""Garbage that may happen to be a request."""
NUMBERS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-1", "0", "-0.0", "1e-400", "0.1", "true", "null", '"1"',
    "9" * 400, "9" * 5000, "18446744073709551616", "9223372036854775808", "1e5", "01", "0x10", "[]", "{}",
)  # fmt: skip
NUMERIC = (
    "seed", "steps", "guidance", "temperature", "max_images", "max_tokens", "previews", "n", "max_completion_tokens",
    "top_p", "frequency_penalty",
)  # fmt: skip
STRINGS = (
    "\x00", "\r\nSet-Cookie: a=b", "../../../../etc/passwd", "%2e%2e%2f", "{{7*7}}", "${jndi:ldap://127.0.0.1/a}",
    "'; DROP TABLE models; --", "\u202e\u0000\uffff", "\U0010ffff" * 9, "a" * 5000, "<script>alert(1)</script>",
    "file:///etc/passwd", "models:/x@y", "s3://bucket/key", "\ufeff",
)  # fmt: skip


def request(rng: random.Random, route: str, image: str = "") -> dict[str, Any]:
    """A request that would be served, and soon."""
    picture = image or base64.b64encode(valid(rng)[1]).decode()
    if route == ROUTES[0]:
        parts: list[Any] = [{"type": "text", "text": "a red circle"}]
        if image or rng.random() < 0.5:
            parts.append({"type": "image", "data": picture})
        return {
            "segments": parts,
            "target": rng.choice(("image", "text")),
            "seed": 1,
            "steps": 1,
            "max_tokens": 2,
        }
    if route == ROUTES[1]:
        url = {"url": f"data:image/png;base64,{picture}"}
        content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": url}]
        return {"messages": [{"role": "user", "content": content}], "seed": 1, "steps": 1, "max_tokens": 2}
    return {"prompt": "a red circle", "n": 1, "seed": 1, "steps": 1}


def dumped(value: Any) -> bytes:
    """JSON as it is written, lone surrogates too."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def noise(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Random bytes."""
    return rng.randbytes(rng.choice((0, 1, 10, 1000, 100_000))), REFUSED


def mutated(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """A good request with some bytes changed, taken out or doubled."""
    body = bytearray(dumped(request(rng, route)))
    for _ in range(rng.randint(1, 6)):
        at, how = rng.randrange(len(body)), rng.randrange(4)
        if how == 0:
            body[at] = rng.randrange(256)
        elif how == 1:
            del body[at : at + rng.randint(1, 5)]
        elif how == 2:
            body[at:at] = body[at : at + rng.randint(1, 30)]
        else:
            body[at:at] = rng.choice((b"null", b'"', b"{", b"]", b"\\ud800", b"\\u0000", b",", b"1e9"))
    return bytes(body), ANY


def cut(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """The beginning of a good request."""
    body = dumped(request(rng, route))
    return body[: rng.randrange(len(body))], REFUSED


def nested(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Depth: alone, or within a field that takes anything."""
    depth = rng.choice((50, 1000, 100_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opened * depth + b"1" + closed * (depth if rng.random() < 0.7 else 0)
    if rng.random() < 0.5:
        return deep, REFUSED
    if route == ROUTES[1]:
        return b'{"metadata": {"a": ' + deep + b'}, "steps": 1, "messages": []}', REFUSED
    return b'{"segments": ' + deep + b"}", REFUSED


def numbers(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Numbers that are none, or too large, where numbers belong."""
    value = request(rng, route)
    name = rng.choice(NUMERIC)
    value[name] = "@"
    return dumped(value).replace(b'"@"', rng.choice(NUMBERS).encode()), ANY


def types(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Nulls and values of another type, somewhere."""
    value = request(rng, route)
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key, below in inner.items() if isinstance(inner, dict) else enumerate(inner):
            places.append((inner, key))
            if isinstance(below, dict | list):
                walk(below)

    walk(value)
    for _ in range(rng.randint(1, 3)):
        inner, key = rng.choice(places)
        inner[key] = rng.choice((None, [], {}, True, 1, 1.5, "", "x", [[]], [None], {"type": "image"}, -1))
    return dumped(value), ANY


def strings(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Texts that mean something elsewhere."""
    value = request(rng, route)
    text = rng.choice(STRINGS)
    name = rng.choice(
        ("prompt", "text", "model", "user", "size", "target", "role", "name", text, "type", "url")
    )
    value[name] = text
    if route == ROUTES[0] and rng.random() < 0.5:
        value = {"segments": [{"type": "text", "text": text}], "target": "text", "steps": 1, "max_tokens": 2}
    return dumped(value), ANY


def surrogates(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Half characters, as escapes or as bytes."""
    half = rng.choice((b"\\ud800", b"\\udfff\\ud800", b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\\u12"))
    value = request(rng, route)
    where = rng.choice(("a red circle", "what is it?", "type", "seed", "steps"))
    return dumped(value).replace(where.encode(), half), ANY


def base64s(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """What is no base64, or hardly."""
    good = base64.b64encode(valid(rng)[1]).decode()
    data = rng.choice(
        (
            "%%%",
            good[:-1],
            f" {good}",
            f"{good[:8]}-_{good[10:]}",
            "=" * 50,
            "é" + good,
            "\n".join(good),
            "",
        )
    )
    route = ROUTES[0] if route == ROUTES[2] else route
    return dumped(request(rng, route, data or " ")), REFUSED


def images(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Files that are no images, or bombs."""
    data = rng.choice(CHEAP)(rng)
    route = ROUTES[0] if route == ROUTES[2] else route
    return dumped(request(rng, route, base64.b64encode(data).decode() or "=")), ANY


@functools.cache
def _costly(number: int) -> str:
    return base64.b64encode(COSTLY[number % len(COSTLY)](random.Random(number))).decode()


def bombs(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Small files that are large inside, up to eight at once."""
    data = _costly(rng.randrange(9))
    value = request(rng, ROUTES[0], data)
    value["segments"] = [{"type": "image", "data": data}] * rng.choice((1, 1, 2, 8))
    return dumped(value), ANY


def many(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """Too much of something."""
    value = request(rng, ROUTES[0])
    kind = rng.randrange(5)
    if kind == 0:
        value["segments"] = [{"type": "text", "text": "a"}] * rng.choice((65, 10_000))
    elif kind == 1:
        value["segments"] = [
            {"type": "image", "data": base64.b64encode(valid(rng)[1]).decode()}
        ] * rng.choice((9, 64))
    elif kind == 2:
        value["segments"] = [{"type": "text", "text": "x" * rng.choice((4097, 1_000_000))}]
    elif kind == 3:
        value |= {f"field{n}": n for n in range(rng.choice((1, 20_000)))}
    else:
        return b" " * rng.choice((1 << 20, (16 << 20) + 1)) + b"{", REFUSED
    return dumped(value), REFUSED


def repeated(rng: random.Random, route: str) -> tuple[bytes, frozenset[int]]:
    """The same key again and again; the last may be good."""
    return b'{"seed": 1,' + b'"seed": 2,' * rng.choice((1, 5000)) + dumped(request(rng, route))[1:], ANY


def addresses(rng: random.Random, route: str, listener: str) -> tuple[bytes, frozenset[int]]:
    """Images that the server is to fetch: it must not."""
    url = rng.choice(
        (f"http://{listener}/x.png", f"https://{listener}/x", f"//{listener}/x", f"ftp://{listener}/x",
         "file:///etc/passwd", "/etc/passwd", f"data:image/png;base64,http://{listener}/x",
         f"data:text/html,http://{listener}/", f"s3://{listener}/x", f"\\\\{listener}\\x")
    )  # fmt: skip
    if route == ROUTES[1]:
        part: Any = {"type": "image_url", "image_url": {"url": url}}
        return dumped({"messages": [{"role": "user", "content": [part]}]}), REFUSED
    kind, name = rng.choice((("image", "data"), ("image", "url"), ("image_url", "data")))
    part = {"type": kind, name: url}
    return dumped({"segments": [part], "target": "text"}), REFUSED


Body = Callable[[random.Random, str], tuple[bytes, frozenset[int]]]
BODIES: tuple[Body, ...] = (
    noise, mutated, mutated, cut, nested, numbers, numbers, types, types, strings, surrogates, base64s, images, images,
    repeated,
)  # fmt: skip
RARE: tuple[Body, ...] = (bombs, many)
