"""What `POST /v1/chat/completions` takes, and the prompt that its messages are."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from workflows.serving.wire import (
    WHOLE,
    BadRequest,
    Guidance,
    ImagePart,
    MaxImages,
    MaxTokens,
    Seed,
    Steps,
    Strict,
    Temperature,
    TextPart,
)

Target = Literal["image", "text", "document"]
MOST_CHOICES = 8
Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE]

Zero = Annotated[float, Field(ge=0, le=0)]


class ImageAddress(Strict):
    """Where an image lies: in the address itself."""

    url: str
    """`data:image/png;base64,...` (or jpeg, webp). Other addresses are refused: nothing is fetched for a caller."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Without effect: images are brought to the model's own size."""


class TextContent(Strict):
    """A run of text."""

    type: Literal["text"]
    text: str


class ImageContent(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class Message(Strict):
    """One message; its role has no effect on a model without turns."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Content], Field(max_length=64)] | None = None
    images: Annotated[list[ImageContent], Field(max_length=8)] | None = None
    """What an earlier answer brought beside its content."""
    name: str | None = None
    refusal: None = None


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False
    """A last chunk with the token counts."""


class ChatRequest(Strict):
    """The fields of OpenAI's API that a model of documents can honour, and some of ours."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    model: str | None = None
    """The name that `GET /v1/models` tells, or none."""
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1, max_length=2)] | None = None
    """text: a text; image: one image; both: a document."""
    target: Target | None = None
    """Ours, in the place of `modalities`."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    seed: Seed | None = None
    """Choice i is made with seed + i."""
    n: Choices | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    max_images: MaxImages | None = None
    user: str | None = None
    """Without effect, as are metadata, store, service_tier and safety_identifier."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    """1, which is without effect."""
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None


def target_of(request: ChatRequest) -> Target:
    """What is to be made: text, where nothing is said."""
    if request.target:
        return request.target
    asked = set(request.modalities or ("text",))
    if asked == {"text", "image"}:
        return "document"
    return "image" if asked == {"image"} else "text"


def parts_of(messages: Sequence[Message]) -> tuple[list[TextPart | ImagePart], list[str]]:
    """The segments of the prompt and their fields: all messages in order, texts of two messages on two lines.

    Raises:
        BadRequest: an image that is not in its address (422).
    """
    parts: list[TextPart | ImagePart] = []
    fields: list[str] = []
    for at, message in enumerate(messages):
        said = message.content or []
        content = [TextContent(type="text", text=said)] if isinstance(said, str) else said
        named = [(f"messages.{at}.content.{i}", part) for i, part in enumerate(content)]
        named += [(f"messages.{at}.images.{i}", part) for i, part in enumerate(message.images or [])]
        for i, (place, part) in enumerate(named):
            field = f"{place}.image_url.url"
            if isinstance(part, TextContent):
                follows = i == 0 and bool(parts) and isinstance(parts[-1], TextPart)
                parts.append(TextPart(type="text", text=f"\n{part.text}" if follows else part.text))
            else:
                parts.append(_image(part, field))
            fields.append(field)
    return parts, fields


def _image(part: ImageContent, field: str) -> ImagePart:
    head, comma, data = part.image_url.url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise BadRequest(
            422, field, "no image in it, and addresses are not fetched", "send data:image/png;base64,..."
        )
    return ImagePart(type="image", data=data)


def seeds_of(seed: int | None, count: int) -> list[int]:
    """A seed for each choice."""
    first = secrets.randbits(53) if seed is None else seed
    return [(first + i) % (1 << 63) for i in range(count)]
