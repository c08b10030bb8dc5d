"""`POST /v1/images/generations` as clients of OpenAI's API know it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from oneflow_core.pipeline import Prompt
from oneflow_core.running import Options
from workflows.serving.chat import demand_model, prompt_tokens
from workflows.serving.chat_wire import Choices, seeds_of
from workflows.serving.engine import Engine, Order, as_made
from workflows.serving.ticket import Work
from workflows.serving.wire import BadRequest, Guidance, Seed, Steps, Strict, TextPart, check_parts, read

if TYPE_CHECKING:
    from workflows.serving.desk import Plan

ROUTE = "POST /v1/images/generations"


class PictureRequest(Strict):
    """The fields of OpenAI's API that the model can honour, and some of ours."""

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    """The name that `GET /v1/models` tells, or none."""
    n: Choices | None = None
    """Images; image i is made with seed + i."""
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]+x[0-9]+)$")] | None = None
    """`auto`, or the one size that the model makes."""
    response_format: Literal["b64_json"] | None = None
    """Nothing is kept that an address could lead to."""
    output_format: Literal["png"] | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    guidance: Guidance | None = None
    quality: str | None = None
    """Without effect, as are style, background, moderation and user."""
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    user: str | None = None


async def plan(engine: Engine, body: bytes) -> Plan:
    """Puts the images of a request in line, each a document of its own."""
    request = read(PictureRequest, body, engine.limits, ROUTE)
    demand_model(engine, request.model)
    check_parts([TextPart(type="text", text=request.prompt)], engine.limits, "prompt")
    side = engine.served.model.facts.image_size
    if request.size not in (None, "auto", f"{side}x{side}"):
        raise BadRequest(422, "size", "the model makes images of one size", f"ask for {side}x{side} or auto")
    options = Options(
        steps=request.steps,
        guidance=request.guidance,
        temperature=None,
        max_images=None,
        max_tokens=None,
        previews=False,
    )
    prompt = Prompt((request.prompt,), "image")
    seeds = seeds_of(request.seed, request.n or 1)
    order = await engine.order([Work(prompt, seed, options) for seed in seeds])

    async def whole() -> Response:
        body = json.dumps(await _answer(engine, order))
        return Response(body, media_type="application/json")

    return order, whole


async def _answer(engine: Engine, order: Order) -> dict[str, Any]:
    made: dict[int, str] = {}
    async for index, document in as_made(order):
        (picture,) = await engine.segments(document)
        made[index] = picture["data"]
    given = prompt_tokens(order)
    return {
        "created": int(time.time()),
        "output_format": "png",
        "data": [{"b64_json": made[index]} for index in sorted(made)],
        "usage": {"input_tokens": given, "output_tokens": len(made), "total_tokens": given + len(made)},
    }
