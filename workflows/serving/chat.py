"""`POST /v1/chat/completions` as clients of OpenAI's API know it, over the same running batch.

A model of documents has no turns: the messages' texts and images are the prompt, in order, and the answer is what
follows. Text grows by insertions anywhere, so a stream cannot send it piece by piece; it comes when it stands.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from oneflow_core.pipeline import GeneratedDocument, Prompt
from oneflow_core.running import Options
from workflows.serving.chat_wire import ChatRequest, parts_of, seeds_of, target_of
from workflows.serving.engine import Engine, Order, as_made
from workflows.serving.events import EventStream
from workflows.serving.ticket import Work
from workflows.serving.wire import BadRequest, check_parts, read

if TYPE_CHECKING:
    from workflows.serving.desk import Plan

ROUTE = "POST /v1/chat/completions"
END = b"data: [DONE]\n\n"


def model_name(engine: Engine) -> str:
    """The name under which the routes know the model."""
    return engine.served.identity["name"] or "oneflow"


def models(engine: Engine) -> dict[str, Any]:
    """The answer of `GET /v1/models`."""
    identity = engine.served.identity
    entry = {"id": model_name(engine), "object": "model", "created": 0, "owned_by": "oneflow"}
    return {
        "object": "list",
        "data": [{**entry, "version": identity["version"], "run_id": identity["run_id"]}],
    }


def demand_model(engine: Engine, asked: str | None) -> None:
    """Raises `BadRequest` (404) where another model is asked for than the one that is served."""
    name = model_name(engine)
    if asked is not None and asked != name:
        raise BadRequest(404, "model", f"no model {asked[:200]!r} is served", f"ask for {name!r}")


async def plan(engine: Engine, body: bytes) -> Plan:
    """Puts the choices of a request in line, each a document of its own."""
    request = read(ChatRequest, body, engine.limits, ROUTE)
    demand_model(engine, request.model)
    parts, fields = parts_of(request.messages)
    check_parts(parts, engine.limits, "messages")
    target = target_of(request)
    options = Options(
        steps=request.steps,
        guidance=request.guidance,
        temperature=request.temperature,
        max_images=request.max_images,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        previews=False,
    )
    prompt = Prompt(await engine.prompt(parts, fields), target)
    seeds = seeds_of(request.seed, request.n or 1)
    order = await engine.order([Work(prompt, seed, options) for seed in seeds])
    answer = _Answer(engine, order, request, options.max_tokens)

    async def whole() -> Response:
        return await answer.whole()

    async def stream() -> Response:
        return EventStream(answer.stream(), order)

    return order, stream if request.stream else whole


class _Answer:
    def __init__(self, engine: Engine, order: Order, request: ChatRequest, most: int | None) -> None:
        self.engine, self.order, self.request, self.most = engine, order, request, most
        identity = order.served.identity
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": identity["name"] or "oneflow",
            "system_fingerprint": f"{identity['name']}/{identity['version']}",
        }
        self.completion_tokens = 0

    async def whole(self) -> Response:
        """One JSON object."""
        choices: list[dict[str, Any]] = []
        async for index, document in as_made(self.order):
            message = {"role": "assistant", "refusal": None, **await self._message(document)}
            choices.append({"index": index, "message": message, "logprobs": None, **self._reason(document)})
        choices.sort(key=lambda choice: choice["index"])
        value = {**self.head, "object": "chat.completion", "choices": choices, "usage": self._usage()}
        body = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return Response(body, media_type="application/json")

    async def stream(self) -> AsyncGenerator[bytes]:
        """Chunks: who speaks, then each choice when it stands, then why it ended, and what it took."""
        for index in range(len(self.order.tickets)):
            yield self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}}])
        async for index, document in as_made(self.order):
            yield self._chunk([{"index": index, "delta": await self._message(document)}])
            yield self._chunk([{"index": index, "delta": {}, **self._reason(document)}])
        if self.request.stream_options and self.request.stream_options.include_usage:
            yield self._chunk([], usage=self._usage())
        yield END

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        choices = [{"logprobs": None, "finish_reason": None, **choice} for choice in choices]
        value = {**self.head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()

    async def _message(self, document: GeneratedDocument) -> dict[str, Any]:
        segments = await self.engine.segments(document)
        text = "".join(s["text"] for s in segments if s["type"] == "text")
        pictures = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{s['data']}"}}
            for s in segments
            if s["type"] == "image"
        ]
        self.completion_tokens += generated(document)
        return {"content": text, **({"images": pictures} if pictures else {})}

    def _reason(self, document: GeneratedDocument) -> dict[str, str]:
        full = self.most is not None and generated(document) >= self.most
        return {"finish_reason": "length" if full else "stop"}

    def _usage(self) -> dict[str, int]:
        given = prompt_tokens(self.order)
        made = self.completion_tokens
        return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def generated(document: GeneratedDocument) -> int:
    """Pieces of text, which are tokens but where a character's bytes came as several; an image is one."""
    return len(document.trace.insertions) + len(document.trace.images)


def prompt_tokens(order: Order) -> int:
    """Tokens of the prompt, once a document of it is done; an image counts as one."""
    return order.tickets[0].prompt_tokens
