"""What travels over HTTP: the request, checked before anything is computed, and the answer."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may bring; more is refused before it is decoded."""

    body_bytes: int = 16 << 20
    text_chars: int = 4096
    """Characters of all text segments together."""
    pixels: int = 1 << 22
    """Pixels of one image."""
    images: int = 8


class BadRequest(Exception):
    """A request that cannot be served: status (4xx), the field, what is wrong with it, and what would do."""

    def __init__(self, status: int, field: str, cause: str, mend: str) -> None:
        super().__init__(status, field, cause, mend)
        self.status = status
        self.body = {"error": {"field": field, "cause": cause, "mend": mend}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A run of text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image: base64 of a PNG, JPEG or WebP file. An address is not followed."""

    type: Literal["image"]
    data: str


class GenerateRequest(_Strict):
    """`POST /v1/generate`. What is left out takes the model's default; without a seed one is drawn."""

    segments: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=64)
    ] = []
    target: Literal["image", "text", "document"] = "image"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance: Annotated[float, Field(ge=0, le=20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    max_images: Annotated[int, Field(ge=0, le=8)] | None = None
    trace: bool = False


def parse(body: bytes, limits: Limits) -> GenerateRequest:
    """The request in `body`.

    Raises:
        BadRequest: not JSON (400), over a limit (413), or a field that is unknown, missing or out of range (422).
    """
    if len(body) > limits.body_bytes:
        raise BadRequest(413, "body", f"more than {limits.body_bytes} bytes", "send smaller images")
    try:
        request = GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise BadRequest(400, "body", str(first["msg"]), "send one JSON object") from None
        field = ".".join(str(p) for p in first["loc"]) or "body"
        raise BadRequest(422, field, str(first["msg"]), "see the fields of POST /v1/generate") from None
    chars = sum(len(s.text) for s in request.segments if isinstance(s, TextPart))
    if chars > limits.text_chars:
        raise BadRequest(413, "segments", f"{chars} characters of text", f"send at most {limits.text_chars}")
    images = sum(isinstance(s, ImagePart) for s in request.segments)
    if images > limits.images:
        raise BadRequest(413, "segments", f"{images} images", f"send at most {limits.images}")
    return request


def decode_image(part: ImagePart, field: str, limits: Limits) -> Image:
    """The image as it lies in the file, any mode.

    Raises:
        BadRequest: no base64, no image of a known format, broken data (422), or too many pixels (413).
    """
    from PIL import Image

    try:
        data = base64.b64decode(part.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(422, field, f"not base64: {error}", "send the file's bytes in base64") from None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > limits.pixels:
            cause = f"{image.width}x{image.height} pixels"
            raise BadRequest(413, field, cause, f"send at most {limits.pixels} pixels")
        image.load()
    except Image.DecompressionBombError:
        raise BadRequest(413, field, "too many pixels", f"send at most {limits.pixels}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        cause = f"no image can be read from it ({type(error).__name__})"
        raise BadRequest(422, field, cause, f"send a whole {' or '.join(FORMATS)} file") from None
    return image


def encode_png(image: Image) -> bytes:
    """`image` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def segments_json(segments: Sequence[str | Image]) -> list[dict[str, Any]]:
    """Segments as the contract's JSON."""
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image",
            "data": base64.b64encode(encode_png(part)).decode("ascii"),
            "width": part.width,
            "height": part.height,
        }
        for part in segments
    ]
