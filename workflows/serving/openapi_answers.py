"""JSON Schemas of the answers, for the description of the routes."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

EVENTS = """With `stream`: server-sent events, each with `event:` and one line `data:` of JSON. Lines that begin with a
colon are comments that keep the connection open.

- `start` {id, seed, target, model}
- `queued` {ahead}: documents that get a place first; only while it waits
- `insertions` {step, time, insertions: [{id, position, token, image}], deletions: [{id, position}]}: `position` is an
  index into the list of what is generated so far (tokens and images); deletions are applied first, then insertions,
  each in the order given, on the list as it is then. `token` may hold U+FFFD where the bytes of a character come as
  several tokens; `done` has the exact text
- `preview` {id, step, time, data, width, height}: a PNG in base64 of the image with that id, as it stands
- `done`: the object that comes without `stream`
- `error` {error: {field, cause, mend}}: the last event where it fails after it began"""

BATCH_EVENTS = """Server-sent events, each with `event:` and one line `data:` of JSON:

- `answer` {index, ...}: the answer of `POST /v1/generate` to the request at that index, as soon as it is made
- `refused` {index, status, error: {field, cause, mend}}: what `POST /v1/generate` would have refused it with
- `done` {requests}: each has had one of the two
- `error` {error: {field, cause, mend}}: the last event where it broke off"""


def _object(required: Json, optional: Json | None = None, **more: Any) -> Json:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        **more,
    }


STRING: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
NAMES = ["start", "queued", "insertions", "preview", "done", "error"]
CHUNK = _object({"data": {**STRING, "contentMediaType": "application/json"}})
EVENT = _object({"event": {"enum": NAMES}, **CHUNK["properties"]})
BATCH_EVENT = _object({"event": {"enum": ["answer", "refused", "done", "error"]}, **CHUNK["properties"]})
TEXT = _object({"type": {"const": "text"}, "text": STRING})
PICTURE = _object({"type": {"const": "image"}, "data": STRING, "width": INTEGER, "height": INTEGER})
MODEL = _object({"name": STRING, "version": STRING, "run_id": STRING})
INSERTION = _object({"segment": INTEGER, "start": INTEGER, "text": STRING, "time": NUMBER, "step": INTEGER})
BIRTH = _object({"segment": INTEGER, "time": NUMBER, "step": INTEGER})
TRACE = _object(
    {
        "insertions": {"type": "array", "items": INSERTION},
        "images": {"type": "array", "items": BIRTH},
        "passes": INTEGER,
        "deleted": INTEGER,
    }
)
USAGE = _object({"prompt_tokens": INTEGER, "completion_tokens": INTEGER, "total_tokens": INTEGER})
MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": STRING},
    {
        "refusal": {"type": "null"},
        "images": {
            "type": "array",
            "items": _object({"type": {"const": "image_url"}, "image_url": _object({"url": STRING})}),
        },
    },
)
CHOICE = _object(
    {"index": INTEGER, "message": MESSAGE, "finish_reason": {"enum": ["stop", "length"]}},
    {"logprobs": {"type": "null"}},
)
UPGRADE = _object({"version": STRING, "outcome": {"enum": ["done", "failed"]}, "cause": STRING, "at": STRING})

ANSWERS: Json = {
    "Answer": _object(
        {
            "segments": {"type": "array", "items": {"oneOf": [TEXT, PICTURE]}},
            "trace": {"oneOf": [TRACE, {"type": "null"}]},
            "model": MODEL,
            "seed": INTEGER,
            "seconds": NUMBER,
        }
    ),
    "Completion": _object(
        {
            "id": STRING,
            "object": {"const": "chat.completion"},
            "created": INTEGER,
            "model": STRING,
            "choices": {"type": "array", "items": CHOICE},
            "usage": USAGE,
        },
        {"system_fingerprint": STRING},
    ),
    "Pictures": _object(
        {"created": INTEGER, "data": {"type": "array", "items": _object({"b64_json": STRING})}},
        {"output_format": {"const": "png"}, "usage": {"type": "object"}},
    ),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": _object(
                    {"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING},
                    {"version": STRING, "run_id": STRING},
                ),
            },
        }
    ),
    "Health": _object(
        {"status": {"const": "ok"}, "model": MODEL, "upgrade": {"oneOf": [UPGRADE, {"type": "null"}]}}
    ),
    "Problem": _object({"error": _object({"field": STRING, "cause": STRING, "mend": STRING})}),
    "OpenAIProblem": _object(
        {
            "error": _object(
                {"message": STRING, "type": STRING},
                {"param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}},
            )
        }
    ),
}
