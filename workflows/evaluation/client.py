"""Drives a deployment over HTTP: many requests at once, tried again where that may help, failures kept."""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from typing import Any

from workflows.errors import OneFlowError, UsageError
from workflows.evaluation.config import A_REPLICA, RequestsConfig
from workflows.evaluation.item import Item, Output, Part
from workflows.evaluation.outputs import OutputStore
from workflows.evaluation.progress import Progress
from workflows.storage import sha256

FULL = 429
RETRIED = {FULL, 500, 502, 503, 504}
FIRST_WAIT_S, MOST_WAIT_S = 0.25, 30.0
MOST_BYTES = 64 << 20
"""Of one reply; more is a failure."""


class _Failure(Exception):
    """A try that came to nothing; `again` says whether another may do better, `after_s` when."""

    def __init__(self, reason: str, again: bool, status: int = 0, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.status, self.after_s = again, status, after_s


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
    *,
    concurrency: int | None = None,
    store: OutputStore | None = None,
    model: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[Output]:
    """One output an item, in order; `progress` is told of each that is asked for, as it comes.

    What `store` has is not asked again, but for failures; what comes goes there. After Ctrl-C nothing new is asked,
    and what is under way is still awaited and kept.

    Raises:
        OneFlowError: another model than `model` answered; what was answered before is kept.
    """
    keys = [key_of(item, config) for item in items]
    kept = store.kept if store is not None else {}
    found = {key: kept[key] for key in keys if key in kept and not kept[key].error}
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
    stop, progress = threading.Event(), progress or Progress()
    progress.begin(len(missing), len(found))

    def take(key: str, output: Output | None) -> None:
        if output is None:
            return
        _refuse_another(url, output, model)
        found[key] = output
        if store is not None:
            store.add(key, output)
        progress.add(output)

    with ThreadPoolExecutor(
        concurrency or config.concurrency or A_REPLICA, thread_name_prefix="evaluate"
    ) as pool:
        asked = {pool.submit(_ask, url, item, config, stop): key for key, item in missing.items()}
        try:
            for future in as_completed(asked):
                take(asked.pop(future), future.result())
        except BaseException as error:
            stop.set()
            running = {future: key for future, key in asked.items() if not future.cancel()}
            if isinstance(error, KeyboardInterrupt | SystemExit):
                for future in as_completed(running):
                    take(running[future], future.result())
            raise
    return [found[key] for key in keys]


def key_of(item: Item, config: RequestsConfig) -> str:
    """Names an item together with all that is sent for it."""
    body = json.dumps(request_body(item, config), sort_keys=True).encode()
    return f"{item.id} {sha256(body)[:16]}"


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


def _refuse_another(url: str, output: Output, model: Mapping[str, str] | None) -> None:
    """A deployment that was given another model meanwhile would mix two models' figures."""
    if not model or not output.model:
        return
    mine, theirs = ((m.get("name", ""), m.get("version", "")) for m in (model, output.model))
    if mine != theirs:
        raise OneFlowError(
            f"the deployment at {url}",
            f"it served {' version '.join(mine)} and now serves {' version '.join(theirs)}",
            "evaluate again while it serves one model; what was answered is kept",
        )


def _segment(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "data": base64.b64encode(part).decode("ascii")}


def _ask(url: str, item: Item, config: RequestsConfig, stop: threading.Event) -> Output | None:
    """The output, or None where `stop` came before it."""
    body = json.dumps(request_body(item, config)).encode()
    headers = {"Content-Type": "application/json", **_authorisation(config.api_key_env)}
    started, tries, attempt = time.perf_counter(), 0, 0
    while not stop.is_set():
        attempt += 1
        try:
            reply = _post(f"{url.rstrip('/')}/v1/generate", body, headers, config.timeout_s)
            model = {key: str(value) for key, value in reply.get("model", {}).items()}
            return Output(_parts(reply), "", time.perf_counter() - started, attempt, model)
        except _Failure as failure:
            waited = time.perf_counter() - started
            tries += failure.status != FULL
            if not failure.again or tries >= config.attempts or waited > config.patience_s:
                return Output((), str(failure), waited, attempt)
            backoff = min(FIRST_WAIT_S * 2 ** (attempt - 1), MOST_WAIT_S)
            stop.wait(backoff if failure.after_s is None else min(failure.after_s, MOST_WAIT_S))
    return None


def _authorisation(variable: str) -> dict[str, str]:
    if not variable:
        return {}
    if not os.environ.get(variable):
        raise UsageError(f"requests.api_key_env={variable}", "no such variable is set", "set it to the key")
    return {"Authorization": f"Bearer {os.environ[variable]}"}


def _post(address: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    request = urllib.request.Request(address, body, dict(headers))  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310
            data = reply.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(2000).decode("utf-8", "replace")
        after = _seconds(error.headers.get("Retry-After"))
        raise _Failure(f"HTTP {error.code}: {said}", error.code in RETRIED, error.code, after) from None
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


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; a date, which no server of ours sends, is None."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None


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
