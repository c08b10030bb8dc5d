"""Requests that must be refused, each with its status and a field, and those that must not."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from workflows.serving.wire import (
    BadRequest,
    ImagePart,
    Limits,
    decode_image,
    encode_png,
    parse,
    segments_json,
)

LIMITS = Limits(body_bytes=100_000, text_chars=50, pixels=128 * 128, images=2)


def image_bytes(size: tuple[int, int] = (64, 64), form: str = "PNG", mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, form)
    return buffer.getvalue()


def part(data: bytes) -> ImagePart:
    return ImagePart(type="image", data=base64.b64encode(data).decode())


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes cannot hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


TEXT = {"type": "text", "text": "a red circle"}
BAD: list[tuple[Any, int, str]] = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b"\xff\xfe", 400, "body"),
    (b'{"segments": [{"type": "text", "text": "\\ud800"}]}', 400, "body"),
    (b"[" * 5000, 400, "body"),
    (b"x" * 100_001, 413, "body"),
    ([], 422, "body"),
    ({"prompt": "a"}, 422, "prompt"),
    ({"segments": "a red circle"}, 422, "segments"),
    ({"segments": [{"type": "sound"}]}, 422, "segments.0"),
    ({"segments": [{"type": "text"}]}, 422, "segments.0.text.text"),
    ({"segments": [{"type": "image", "url": "http://localhost/x.png"}]}, 422, "segments.0.image.data"),
    ({"segments": [TEXT] * 65}, 422, "segments"),
    ({"segments": [{"type": "text", "text": "x" * 51}]}, 413, "segments"),
    ({"segments": [{"type": "image", "data": ""}] * 3}, 413, "segments"),
    ({"target": "video"}, 422, "target"),
    ({"seed": -1}, 422, "seed"),
    ({"seed": 1 << 63}, 422, "seed"),
    ({"seed": "7"}, 422, "seed"),
    ({"steps": 0}, 422, "steps"),
    ({"steps": 10**9}, 422, "steps"),
    ({"steps": 1.5}, 422, "steps"),
    ({"guidance": 1e9}, 422, "guidance"),
    (b'{"guidance": NaN}', 422, "guidance"),
    ({"temperature": -1}, 422, "temperature"),
    ({"max_images": 1000}, 422, "max_images"),
    ({"trace": "yes"}, 422, "trace"),
]


@pytest.mark.parametrize(("body", "status", "field"), BAD)
def test_bad_requests_are_refused_by_field(body: Any, status: int, field: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest) as caught:
        parse(data, LIMITS)
    error = caught.value.body["error"]
    assert (caught.value.status, error["field"]) == (status, field)
    assert error["cause"] and error["mend"]


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_whatever_comes_is_parsed_or_refused(body: bytes) -> None:
    try:
        parse(body, LIMITS)
    except BadRequest as refusal:
        assert 400 <= refusal.status < 500


def test_a_whole_request_is_read_and_defaults_are_left_to_the_model() -> None:
    picture = {"type": "image", "data": "eA=="}
    given = {
        "segments": [picture, TEXT],
        "target": "document",
        "seed": 3,
        "steps": 8,
        "guidance": 2,
        "trace": True,
    }
    request = parse(json.dumps(given).encode(), LIMITS)
    assert (request.seed, request.steps, request.guidance, request.temperature) == (3, 8, 2.0, None)
    assert [s.type for s in request.segments] == ["image", "text"]


def test_a_whole_number_may_have_a_point() -> None:
    request = parse(b'{"steps": 4.0, "seed": 7.0, "max_tokens": 2e1, "previews": 0.0}', LIMITS)
    values = (request.steps, request.seed, request.max_tokens, request.previews)
    assert values == (4, 7, 20, 0) and {type(v) for v in values} == {int}
    for wrong in (b'{"steps": 4.5}', b'{"steps": true}', b'{"steps": "4"}', b'{"steps": 1e400}'):
        with pytest.raises(BadRequest):
            parse(wrong, LIMITS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_images_of_known_formats_are_read(form: str) -> None:
    image = decode_image(part(image_bytes(form=form)), "f", LIMITS)
    assert image.size == (64, 64)


WHOLE = image_bytes()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("/etc/passwd", 422),
        ("http://localhost/image.png", 422),
        ("!!!", 422),
        ("ä", 422),
        (base64.b64encode(b"").decode(), 422),
        (base64.b64encode(b"no image").decode(), 422),
        (base64.b64encode(WHOLE[: len(WHOLE) // 2]).decode(), 422),
        (base64.b64encode(WHOLE[:40] + b"\0" * 200).decode(), 422),
        (base64.b64encode(image_bytes(form="GIF")).decode(), 422),
        (base64.b64encode(image_bytes((129, 128))).decode(), 413),
        (base64.b64encode(png_of_claimed_size(60_000, 60_000)).decode(), 413),
        (base64.b64encode(png_of_claimed_size(100, 100)).decode(), 422),
    ],
)
def test_bad_images_are_refused(data: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_image(ImagePart(type="image", data=data), "segments.0.data", LIMITS)
    assert caught.value.status == status
    assert caught.value.body["error"]["field"] == "segments.0.data"


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(at: int, value: int) -> None:
    data = bytearray(WHOLE)
    data[at] = value
    try:
        decode_image(part(bytes(data)), "f", LIMITS)
    except BadRequest as refusal:
        assert refusal.status in (413, 422)


def test_answers_carry_the_very_pixels() -> None:
    image = Image.open(io.BytesIO(WHOLE))
    text, picture = segments_json(["a red circle", image])
    assert text == {"type": "text", "text": "a red circle"}
    assert (picture["type"], picture["width"], picture["height"]) == ("image", 64, 64)
    again = Image.open(io.BytesIO(base64.b64decode(picture["data"])))
    assert again.format == "PNG"
    assert np.array_equal(np.asarray(again), np.asarray(image))
    assert encode_png(image) == base64.b64decode(picture["data"])


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"%x":0' % n for n in range(100_000)) + b"}",
        b'{"segments":[' + b"0," * 100_000 + b"0]}",
    ],
)
def test_a_body_of_very_many_fields_is_not_even_read(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(body, Limits())
    assert (caught.value.status, caught.value.field) == (413, "body")


def test_the_longest_texts_of_quotes_and_commas_are_read() -> None:
    texts = [{"type": "text", "text": '",' * 32}] * 64
    assert len(parse(json.dumps({"segments": texts}).encode(), Limits()).segments) == 64


def test_a_refusal_does_not_send_back_a_long_name() -> None:
    with pytest.raises(BadRequest) as caught:
        parse(json.dumps({"a" * 10_000: 1}).encode(), Limits())
    assert caught.value.status == 422 and 1 < len(caught.value.field) <= 200
