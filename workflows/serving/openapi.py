"""The description of the routes for programs: OpenAPI 3.1, its request bodies out of the models that check them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from workflows.serving.chat_wire import ChatRequest
from workflows.serving.openapi_answers import ANSWERS, BATCH_EVENT, BATCH_EVENTS, CHUNK, EVENT, EVENTS
from workflows.serving.pictures import PictureRequest
from workflows.serving.wire import BatchRequest, GenerateRequest

Json = dict[str, Any]
REF = "#/components/schemas/"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
REFUSALS = {
    "400": "The body is no JSON object, or (on OpenAI's routes) a field is wrong.",
    "401": "An API key is set and was not given.",
    "404": "Another model is asked for than the one that is served.",
    "408": "The headers or the body did not arrive in time.",
    "413": "The body, its texts or its images are larger than one request may bring.",
    "422": "A field is unknown, missing or out of range, or an image cannot be read.",
    "429": "The queue is full. `Retry-After` says when a place is likely to be free.",
    "431": "The request's line and headers are longer than 64 KiB.",
    "500": "The server failed.",
    "503": "The replica that made it is gone, or none is there.",
}
HEAD = ("408", "431")
"""Of any route, before it is known which: in our own words."""
ASKED = {
    "a picture": {"segments": [{"type": "text", "text": "a red circle"}], "target": "image", "seed": 5},
    "a caption": {"segments": [{"type": "image", "data": PIXEL}], "target": "text"},
    "a question": {
        "segments": [{"type": "image", "data": PIXEL}, {"type": "text", "text": "what colour is it?"}],
        "target": "text",
        "temperature": 0,
    },
    "a stream": {"segments": [], "target": "document", "stream": True, "previews": 4, "max_images": 1},
}
BATCHES = {"a picture and a caption": {"requests": [ASKED["a picture"], ASKED["a caption"]]}}
CHATS = {
    "a caption": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                    {"type": "text", "text": "what is there?"},
                ],
            }
        ]
    },
    "a picture": {"messages": [{"role": "user", "content": "a red circle"}], "modalities": ["image"]},
}
PICTURES = {"two pictures": {"prompt": "a red circle", "n": 2, "response_format": "b64_json"}}


@cache
def document() -> Json:
    """The whole description."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in (GenerateRequest, BatchRequest, ChatRequest, PictureRequest)],
        ref_template=REF + "{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "OneFlow", "version": version("oneflow"), "description": __doc__},
        "paths": _paths(),
        "components": {
            "schemas": {**schemas["$defs"], **ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _paths() -> Json:
    native, openai = "Problem", "OpenAIProblem"
    return {
        "/v1/generate": _post(
            "generate",
            "Makes one document.",
            GenerateRequest,
            ASKED,
            "Answer",
            {**EVENT, "description": EVENTS},
        ),
        "/v1/batch": _post(
            "batch",
            "Makes many documents, which is less work for everybody but the model.",
            BatchRequest,
            BATCHES,
            "",
            {**BATCH_EVENT, "description": BATCH_EVENTS},
        ),
        "/v1/chat/completions": _post(
            "chat",
            "The same in the words of OpenAI's API. Text is inserted anywhere while it grows, so a stream sends a "
            "choice when it stands, as one chunk, and ends with `data: [DONE]`.",
            ChatRequest,
            CHATS,
            "Completion",
            {
                **CHUNK,
                "description": "Chunks in the manner of OpenAI's API, one `data:` line each, then `data: [DONE]`.",
            },
            openai,
        ),
        "/v1/images/generations": _post(
            "pictures",
            "Pictures for a text, as OpenAI's API has it.",
            PictureRequest,
            PICTURES,
            "Pictures",
            problem=openai,
        ),
        "/v1/models": {"get": _get("models", "The model that is served.", "Models", ("401",), openai)},
        "/healthz": {
            "get": _get("health", "Whether a replica holds the model, and which.", "Health", (), native)
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "A replica's counters for Prometheus.",
                "responses": {
                    "200": {
                        "description": "Text.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    **{code: _refusal(code, native) for code in ("401", *HEAD)},
                },
            }
        },
    }


def _post(
    name: str,
    summary: str,
    kind: type,
    examples: Json,
    answer: str,
    events: Json | None = None,
    problem: str = "Problem",
) -> Json:
    content: Json = {"application/json": {"schema": {"$ref": REF + answer}}} if answer else {}
    openai = problem != "Problem"
    if events:
        content["text/event-stream"] = {"schema": events}
    told = [code for code in REFUSALS if code != ("422" if openai else "404")]
    body = {
        "schema": {"$ref": REF + kind.__name__},
        "examples": {k: {"value": v} for k, v in examples.items()},
    }
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": body}},
            "responses": {
                "200": {"description": "Done.", "content": content},
                **{code: _refusal(code, problem) for code in told},
            },
        }
    }


def _get(name: str, summary: str, answer: str, told: tuple[str, ...], problem: str) -> Json:
    content = {"application/json": {"schema": {"$ref": REF + answer}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": content},
            **{code: _refusal(code, problem) for code in (*told, *HEAD)},
        },
    }


def _refusal(code: str, problem: str) -> Json:
    kinds = dict.fromkeys((problem, "Problem") if code in HEAD else (problem,))
    schemas = [{"$ref": REF + kind} for kind in kinds]
    refusal: Json = {
        "description": REFUSALS[code],
        "content": {"application/json": {"schema": {"anyOf": schemas} if schemas[1:] else schemas[0]}},
    }
    if code == "429":
        refusal["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return refusal
