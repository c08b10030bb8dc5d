"""Drives a deployment over HTTP: many requests at once, tried again where that may help, failures kept."""

from __future__ import annotations

import base64
import binascii
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from workflows.errors import OneFlowError
from workflows.evaluation.config import RequestsConfig
from workflows.evaluation.item import Item, Output, Part

RETRIED = {429, 500, 502, 503, 504}
FIRST_WAIT_S = 0.25
MOST_BYTES = 64 << 20
"""Of one reply; more is a failure."""


class _Failure(Exception):
    """A try that came to nothing; `again` says whether another may do better."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def identity(url: str, timeout_s: float = 30.0) -> Mapping[str, str]:
    """Name, version and run of the model behind `url`; OneFlowError where no deployment answers."""
    address = f"{url.rstrip('/')}/healthz"
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as reply:  # noqa: S310
            model = json.loads(reply.read(1 << 20))["model"]
        return {key: str(model.get(key) or "") for key in ("name", "version", "run_id")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HTTPException) as error:
        raise OneFlowError(
            url, f"no deployment answers at /healthz ({error})", 'start one with "oneflow serve MODEL"'
        ) from None


def ask_all(
    url: str,
    items: Sequence[Item],
    config: RequestsConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Output]:
    """One output an item, in order; `progress` is told after each how many are done."""
    done = 0

    def ask(item: Item) -> Output:
        return _ask(url, item, config)

    outputs: list[Output] = []
    with ThreadPoolExecutor(config.concurrency, thread_name_prefix="evaluate") as pool:
        for output in pool.map(ask, items):
            outputs.append(output)
            done += 1
            progress(done)
    return outputs


def request_body(item: Item, config: RequestsConfig) -> dict[str, Any]:
    """The item as the body of `POST /v1/generate`."""
    sampling = getattr(config, item.target)
    options = {
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "temperature": sampling.temperature,
        "max_images": item.max_images,
    }
    return {
        "segments": [_segment(part) for part in item.prompt],
        "target": item.target,
        "seed": item.seed,
        **{name: value for name, value in options.items() if value is not None},
    }


def _segment(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "data": base64.b64encode(part).decode("ascii")}


def _ask(url: str, item: Item, config: RequestsConfig) -> Output:
    body = json.dumps(request_body(item, config)).encode()
    started, reason = time.perf_counter(), ""
    for attempt in range(1, config.attempts + 1):
        try:
            reply = _post(f"{url.rstrip('/')}/v1/generate", body, config.timeout_s)
            model = {key: str(value) for key, value in reply.get("model", {}).items()}
            return Output(_parts(reply), "", time.perf_counter() - started, attempt, model)
        except _Failure as failure:
            reason = str(failure)
            if not failure.again or attempt == config.attempts:
                return Output((), reason, time.perf_counter() - started, attempt)
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _post(address: str, body: bytes, timeout_s: float) -> dict[str, Any]:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310
            data = reply.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(2000).decode("utf-8", "replace")
        raise _Failure(f"HTTP {error.code}: {said}", error.code in RETRIED) from None
    except (OSError, HTTPException) as error:
        raise _Failure(f"{type(error).__name__}: {error}", True) from None
    if len(data) > MOST_BYTES:
        raise _Failure(f"the reply is longer than {MOST_BYTES} bytes", False)
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _Failure(f"the reply is no JSON: {error}", False) from None
    if not isinstance(value, dict):
        raise _Failure("the reply is no JSON object", False)
    return value


def _parts(reply: Mapping[str, Any]) -> tuple[Part, ...]:
    try:
        return tuple(
            str(s["text"]) if s["type"] == "text" else base64.b64decode(s["data"], validate=True)
            for s in reply["segments"]
        )
    except (KeyError, TypeError, binascii.Error) as error:
        raise _Failure(
            f"the reply's segments cannot be read: {type(error).__name__}: {error}", False
        ) from None
