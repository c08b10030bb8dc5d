"""A refusal or a failure in the words of the route: ours, or those that clients of OpenAI's API read."""

from __future__ import annotations

import json
from typing import Any

from workflows.serving.wire import BadRequest

FAILED = BadRequest(500, "", "the server failed", "see the replica's log")
LOST = BadRequest(503, "", "the replica that made it is gone", "try again", {"Retry-After": "1"})
KINDS = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class Shape:
    """How one family of routes tells what went wrong."""

    def __call__(self, refusal: BadRequest) -> dict[str, Any]:
        """The JSON object."""
        return refusal.body

    def status(self, status: int) -> int:
        """The HTTP status."""
        return status

    def event(self, refusal: BadRequest) -> bytes:
        """What ends a stream that has begun."""
        return f"event: error\ndata: {json.dumps(self(refusal))}\n\n".encode()


class _OpenAI(Shape):
    def __call__(self, refusal: BadRequest) -> dict[str, Any]:
        default = "invalid_request_error" if refusal.status < 500 else "server_error"
        kind, code = KINDS.get(refusal.status, (default, None))
        where = f"{refusal.field}: " if refusal.field else ""
        message = f"{where}{refusal.cause}; {refusal.mend}"
        return {"error": {"message": message, "type": kind, "param": refusal.field or None, "code": code}}

    def status(self, status: int) -> int:
        return 400 if status == 422 else status

    def event(self, refusal: BadRequest) -> bytes:
        return f"data: {json.dumps(self(refusal))}\n\n".encode()


native, openai = Shape(), _OpenAI()


def shape_of(path: str) -> Shape:
    """The shape of the route at `path`."""
    return openai if path.startswith(("/v1/chat/", "/v1/images/", "/v1/models")) else native
