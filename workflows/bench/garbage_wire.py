"""What is no HTTP, or hardly: what goes over the wire, and what may come back."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from workflows.bench.garbage_bodies import BODIES, RARE, ROUTES, addresses, dumped, request

CLIENT_ERRORS = frozenset(range(400, 432))
LENIENT = CLIENT_ERRORS | {200}
After = Literal["read", "half", "leave"]


@dataclass(frozen=True, slots=True)
class Place:
    """Who is asked, and with what key."""

    netloc: str
    key: str = ""
    listener: str = "127.0.0.1:9"
    """Where somebody listens whom the server must not reach."""


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of garbage."""

    kind: str
    wire: bytes
    statuses: frozenset[int]
    """That may come."""
    quiet: bool = False
    """Whether no answer is fine."""
    after: After = "read"
    """Having sent: read the answer, say that nothing more comes and read, or go away at once."""


def head(place: Place, method: str = "POST", path: str = "/v1/generate", **headers: str) -> bytes:
    """The beginning of a request, up to the empty line."""
    own = {"Host": place.netloc, **({"Authorization": f"Bearer {place.key}"} if place.key else {})}
    fields = own | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n"


def posted(place: Place, path: str, body: bytes, **headers: str) -> bytes:
    """A whole request, after which the connection ends."""
    lengths = {"Content_Length": str(len(body)), "Connection": "close", "Content_Type": "application/json"}
    return head(place, "POST", path, **{**lengths, **headers}) + body


def body_case(rng: random.Random, place: Place) -> Case:
    """A bad body in good HTTP."""
    route = rng.choice(ROUTES)
    if rng.random() < 0.1:
        body, statuses = addresses(rng, route, place.listener)
        route = ROUTES[1] if b'"messages"' in body else ROUTES[0]
        return Case("addresses", posted(place, route, body), statuses)
    make = rng.choice(RARE if rng.random() < 0.03 else BODIES)
    body, statuses = make(rng, route)
    if make in RARE or b'"segments"' in body[:20]:
        route = ROUTES[0]
    elif b'"messages"' in body[:20]:
        route = ROUTES[1]
    return Case(make.__name__, posted(place, route, body), statuses)


def noise(rng: random.Random, place: Place) -> Case:
    """Random bytes."""
    wire = rng.randbytes(rng.randint(1, 3000)) + rng.choice((b"", b"\r\n\r\n"))
    return Case("wire noise", wire, CLIENT_ERRORS, quiet=True, after=rng.choice(("half", "leave")))


def other_protocol(rng: random.Random, place: Place) -> Case:
    """TLS, HTTP/2, HTTP/0.9, SSH and their like."""
    wire = rng.choice(
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
         b"GET /\r\n", b"SSH-2.0-x\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 5000,
         head(place, "GET", "/", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13",
              Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="),
         head(place, "GET", "/", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABk"))
    )  # fmt: skip
    return Case("other protocol", wire, LENIENT, quiet=True, after="half")


def cut_head(rng: random.Random, place: Place) -> Case:
    """A request that ends before its empty line."""
    wire = head(place, Content_Length="10")
    after: After = rng.choice(("half", "leave"))
    return Case("cut head", wire[: rng.randrange(len(wire) - 2)], CLIENT_ERRORS, quiet=True, after=after)


def lengths(rng: random.Random, place: Place) -> Case:
    """Lengths that are none, or two, or not that of the body."""
    body = dumped(request(rng, ROUTES[0]))
    given = rng.choice(
        (
            "-1",
            "+5",
            "abc",
            "9" * 30,
            "0x10",
            "",
            "1e3",
            str(len(body) - 7),
            "0",
            "4, 5",
            str(len(body) + 40),
            "16777217",
        )
    )
    wire = head(place, Content_Length=given, Connection="close") + body
    if rng.random() < 0.2:
        twice = f"Content-Length: {len(body)}\r\nContent-Length: {len(body) - 3}\r\n\r\n".encode()
        wire = head(place)[:-2] + twice + body
    return Case("lengths", wire, LENIENT, quiet=True, after=rng.choice(("half", "leave")))


def chunks(rng: random.Random, place: Place) -> Case:
    """Chunked bodies with bad sizes, trailers, or no end; with a length beside them."""
    begun = head(place, Transfer_Encoding="chunked", **rng.choice(({}, {"Content_Length": "5"})))
    wire = rng.choice(
        (b"zz\r\n{}\r\n0\r\n\r\n", b"-5\r\n{}\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n{}", b"2\r\n{",
         b"2;" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\nA: b\r\n" * 20, b"1\r\n \r\n" * 3000,
         b"2\r\n{}\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n")
    )  # fmt: skip
    return Case("chunks", begun + wire, LENIENT, quiet=True, after=rng.choice(("half", "leave")))


def headers(rng: random.Random, place: Place) -> Case:
    """Headers that are large, many, empty, folded, or carry line breaks."""
    begun = f"{rng.choice(('GET /healthz', 'POST /v1/generate'))} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    more = rng.choice(
        (b"X: " + b"a" * 1_000_000, b"\r\n".join(b"X%d: y" % n for n in range(20_000)), b": y", b"X : y", b"X: a\r\n b",
         b"X: \x00\x01\x7f", b"X: \xff\xfe", b"\xff: a", b"Cookie: " + b"a=b;" * 5000, b"Range: bytes=0-0,-1",
         b"Authorization: Bearer " + rng.randbytes(40).hex().encode(), b"Authorization: \xed\xa0\x80", b"Host: y",
         b"Accept-Encoding: " + b"gzip," * 9000, b"X-Request-ID: a\x0db\r\nSet-Cookie: a=b", b"Expect: 100-continue",
         b"X-Forwarded-For: 127.0.0.1, ::1\r\nForwarded: for=unix:", b"serve_multiplexed_model_id: ../../x")
    )  # fmt: skip
    return Case("headers", begun + more + b"\r\n\r\n", LENIENT, quiet=True)


def paths(rng: random.Random, place: Place) -> Case:
    """Paths that lead elsewhere, or nowhere."""
    path = rng.choice(
        ("/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%00", "*",
         "x", "/" + "a" * 60_000, "/" + "../" * 3000, "http://127.0.0.1:9/x", "/v1/generate%0d%0aSet-Cookie:a=b",
         "/.env", "/?" + "a=b&" * 9000, "/\u00e9\ud800", "/-/routes", "/-/healthz", "/docs", "/redoc",
         "/v1/generate/", "/openapi.json?x=" + "%" * 99, "/static/..%5c..%5cx", "/v1/models/../../x", "/.git/config",
         "/metrics/../x", "/v1/models/%F0%9F")
    )  # fmt: skip
    wire = head(place, rng.choice(("GET", "POST", "HEAD")), path, Connection="close", Content_Length="0")
    return Case("paths", wire, LENIENT, quiet=True)


def methods(rng: random.Random, place: Place) -> Case:
    """Methods that are not offered, or none."""
    method = rng.choice(
        ("TRACE", "CONNECT", "OPTIONS", "PUT", "DELETE", "PATCH", "get", "G" * 3000, "PROPFIND", "\x00", "")
    )
    wire = head(place, method, rng.choice(("/", *ROUTES)), Connection="close", Content_Length="0")
    return Case("methods", wire, LENIENT, quiet=True)


def encodings(rng: random.Random, place: Place) -> Case:
    """Bodies that are packed, or of another type than JSON."""
    body = dumped(request(rng, ROUTES[0]))
    name = rng.choice(("gzip", "deflate", "br", "zstd", "identity, gzip"))
    kind = rng.choice(
        ("multipart/form-data; boundary=x", "text/xml", "application/json; charset=utf-16", "\x7f", "")
    )
    packed = gzip.compress(rng.choice((body, bytes(1 << 24))), mtime=0)
    wire = posted(place, ROUTES[0], packed, Content_Encoding=name, Content_Type=kind)
    return Case("encodings", wire, frozenset({400, 413, 415, 422}))


def left(rng: random.Random, place: Place) -> Case:
    """A good request whose client does not wait, or does not even send it all."""
    value = {
        **request(rng, ROUTES[0]),
        "steps": 100,
        "target": "image",
        "stream": rng.random() < 0.5,
        "previews": 1,
    }
    wire = posted(place, ROUTES[0], dumped(value))
    end = len(wire) if rng.random() < 0.5 else rng.randrange(len(wire))
    return Case("left", wire[:end], frozenset(), quiet=True, after="leave")


def pipelined(rng: random.Random, place: Place) -> Case:
    """Many requests at once on one connection."""
    one = head(place, "GET", "/healthz")
    bad = posted(place, ROUTES[0], b"{")
    return Case("pipelined", one * rng.randint(2, 40) + bad, LENIENT)


WIRES: tuple[Callable[[random.Random, Place], Case], ...] = (
    noise, other_protocol, cut_head, lengths, chunks, headers, paths, methods, encodings, left, pipelined,
)  # fmt: skip


def case(number: int, place: Place, seed: int = 0) -> Case:
    """The same garbage for the same number and seed; two of three have a bad body in good HTTP."""
    rng = random.Random(f"{seed}/{number}")
    return body_case(rng, place) if rng.random() < 2 / 3 else rng.choice(WIRES)(rng, place)
