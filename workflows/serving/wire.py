"""What travels over HTTP: the request, checked before anything is computed, and the answer."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_FIELD_CHARS = 200
"""Of a field's name in a refusal: it may be the caller's own."""
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may bring; more is refused before it is decoded."""

    body_bytes: int = 16 << 20
    body_s: float = 30.0
    """Seconds within which a body must be there."""
    held_bytes: int = 512 << 20
    """Bytes of all bodies together that are being received."""
    text_chars: int = 4096
    """Characters of all text segments together."""
    pixels: int = 1 << 22
    """Pixels of one image."""
    images: int = 8
    batch_images: int = 64
    """Of all requests of a batch together."""
    marks: int = 20_000
    """Quotes and commas of a body: neither texts of that length nor base64 have more. Millions of fields are millions
    of errors, which take seconds and gigabytes to put into words."""


class BadRequest(Exception):
    """A request that is not served: status (4xx, or 503), the field, what is wrong with it, and what would do."""

    def __init__(
        self, status: int, field: str, cause: str, mend: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, field, cause, mend)
        self.status, self.headers = status, dict(headers or {})
        self.field, self.cause, self.mend = field, cause, mend

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of `POST /v1/generate`."""
        return {"error": {"field": self.field, "cause": self.cause, "mend": self.mend}}


class Strict(BaseModel):
    """A JSON object with exactly the fields that are named; numbers are finite, and nothing is converted."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 4.0 is the integer 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Seed = Annotated[int, Field(ge=0, lt=1 << 63), WHOLE]
Steps = Annotated[int, Field(ge=1, le=200), WHOLE]
Guidance = Annotated[float, Field(ge=0, le=20)]
Temperature = Annotated[float, Field(ge=0, le=5)]
MaxTokens = Annotated[int, Field(ge=1, le=2048), WHOLE]
MaxImages = Annotated[int, Field(ge=0, le=8), WHOLE]


class TextPart(Strict):
    """A run of text."""

    type: Literal["text"]
    text: str
    """The text; all texts of a request have 4,096 characters at most."""


class ImagePart(Strict):
    """An image: base64 of a PNG, JPEG or WebP file. An address is not followed."""

    type: Literal["image"]
    data: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    """base64 of the file's bytes; an image has 4,194,304 pixels at most."""


class GenerateRequest(Strict):
    """`POST /v1/generate`. What is left out takes the model's default; without a seed one is drawn."""

    segments: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=64)
    ] = []
    """What is given, in reading order."""
    target: Literal["image", "text", "document"] = "image"
    """What is to follow: one image, a text, or a text with images where the model puts them."""
    seed: Seed | None = None
    """The same request with the same seed gives the same document."""
    steps: Steps | None = None
    """Steps of the sampler."""
    guidance: Guidance | None = None
    """How hard the prompt pulls: the scale of an image's velocity (1 is off), or w of a text's rates (0 is off)."""
    temperature: Temperature | None = None
    """Of the token distribution; 0 takes the likeliest token."""
    max_images: MaxImages | None = None
    """Most images of a document."""
    max_tokens: MaxTokens | None = None
    """Most tokens that are generated, images counting as one each."""
    trace: bool = False
    """Whether the answer says which piece came when."""
    stream: bool = False
    """Server-sent events instead of one JSON object."""
    previews: Annotated[int, Field(ge=0, le=200), WHOLE] = 0
    """With `stream`: a preview of every image each so many steps; 0 is none."""


class BatchRequest(Strict):
    """`POST /v1/batch`: many documents in one request, which is less work for everybody but the model."""

    requests: Annotated[list[GenerateRequest], Field(min_length=1, max_length=32)]
    """Each as `POST /v1/generate` takes it, and answered as it would be; `stream` and `previews` change nothing.
    They have 64 images together at most."""


def parse(body: bytes, limits: Limits) -> GenerateRequest:
    """The request in `body`.

    Raises:
        BadRequest: not JSON (400), over a limit (413), or a field that is unknown, missing or out of range (422).
    """
    request = read(GenerateRequest, body, limits, "POST /v1/generate")
    check_parts(request.segments, limits, "segments")
    return request


def read(kind: type[M], body: bytes, limits: Limits, route: str) -> M:
    """`body` as a `kind`.

    Raises:
        BadRequest: not JSON (400), too long (413), or a field that is unknown, missing or out of range (422).
    """
    if len(body) > limits.body_bytes:
        raise BadRequest(413, "body", f"more than {limits.body_bytes} bytes", "send smaller images")
    if body.count(b'"') + body.count(b",") > limits.marks:
        raise BadRequest(
            413, "body", f"more than {limits.marks} quotes and commas", f"see the fields of {route}"
        )
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise BadRequest(400, "body", str(first["msg"]), "send one JSON object") from None
        field = ".".join(str(p) for p in first["loc"])[:MOST_FIELD_CHARS] or "body"
        raise BadRequest(422, field, str(first["msg"]), f"see the fields of {route}") from None


def check_parts(parts: Sequence[TextPart | ImagePart], limits: Limits, field: str) -> None:
    """Raises `BadRequest` (413) where there is more text, or more images, than one request may bring."""
    chars = sum(len(s.text) for s in parts if isinstance(s, TextPart))
    if chars > limits.text_chars:
        raise BadRequest(413, field, f"{chars} characters of text", f"send at most {limits.text_chars}")
    images = sum(isinstance(s, ImagePart) for s in parts)
    if images > limits.images:
        raise BadRequest(413, field, f"{images} images", f"send at most {limits.images}")


def decode_image(part: ImagePart, field: str, limits: Limits, size: int | None = None) -> Image:
    """The image as it lies in the file, any mode; or as a model sees it, an RGB square of `size` pixels.

    Raises:
        BadRequest: no base64, no image of a known format, broken data (422), or too many pixels (413).
    """
    from PIL import Image

    from oneflow_core.images import fit

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
        return image if size is None else Image.fromarray(fit(image, size))
    except Image.DecompressionBombError:
        raise BadRequest(413, field, "too many pixels", f"send at most {limits.pixels}") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        struct.error,
        zlib.error,
    ) as error:
        cause = f"no image can be read from it ({type(error).__name__})"
        raise BadRequest(422, field, cause, f"send a whole {' or '.join(FORMATS)} file") from None


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
