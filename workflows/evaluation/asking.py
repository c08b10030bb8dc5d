"""Asks a deployment for items: many in a request, what was answered kept, failures recorded."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from workflows.client import RETRIED, Answer, Client, ServerError, Stopped, request_body
from workflows.errors import OneFlowError, UsageError
from workflows.evaluation.config import A_REPLICA, RequestsConfig
from workflows.evaluation.item import Item, Output
from workflows.evaluation.outputs import OutputStore
from workflows.evaluation.progress import Progress
from workflows.storage import sha256

TRIED_AGAIN = RETRIED | {500}
"""Whoever evaluates would rather ask once more than count an item as wrong, whatever stood between."""


def identity(url: str, timeout_s: float = 30.0) -> Mapping[str, str]:
    """Name, version and run of the model behind `url`; OneFlowError where no deployment answers."""
    try:
        with Client(url, attempts=1, timeout_s=timeout_s) as client:
            model = client.health()["model"]
        return {key: str(model.get(key) or "") for key in ("name", "version", "run_id")}
    except (ServerError, KeyError, AttributeError) as error:
        why = error.cause if isinstance(error, ServerError) else f"no model is named: {error!r}"
        raise OneFlowError(
            url, f"no deployment answers at /healthz ({why})", 'start one with "oneflow serve MODEL"'
        ) from None


A_REQUEST = 16
"""Items in one request at most: what a request costs beside the model is shared by so many."""
LANES = 4
"""Requests under way at once at least, where as many items may be: while one ends, others have some that wait."""
PROMPT_BYTES = 8 << 20
"""Of the prompts of one request, before base64."""
LONGEST_FIRST = ("document", "image", "text")
"""Targets in the order in which they are asked for: at the end a replica has few left, and they are soon done."""


def ask_all(
    url: str,
    items: Sequence[Item],
    config: RequestsConfig,
    *,
    concurrency: int | None = None,
    store: OutputStore | None = None,
    model: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    seen: Callable[[Item, Output], None] | None = None,
) -> list[Output]:
    """One output an item, in order; they are asked for `LONGEST_FIRST`, and `progress` is told of each as it comes.

    What `store` has is not asked again, but for failures; what comes goes there, and then to `seen`, while the next
    ones are in the making. After Ctrl-C nothing new is asked, and what is under way is still awaited and kept.

    Raises:
        OneFlowError: another model than `model` answered; what was answered before is kept.
    """
    keys = [key_of(item, config) for item in items]
    kept = store.kept if store is not None else {}
    found = {key: kept[key] for key in keys if key in kept and not kept[key].error}
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
    stop, progress = threading.Event(), progress or Progress()
    progress.begin(len(missing), len(found))

    def take(key: str, output: Output) -> None:
        _refuse_another(url, output, model)
        found[key] = output
        if store is not None:
            store.add(key, output)
        progress.add(output)
        if seen is not None:
            seen(missing[key], output)

    at_once = concurrency or config.concurrency or A_REPLICA
    size = min(A_REQUEST, max(1, at_once // LANES))
    in_turn = sorted(missing.items(), key=lambda one: LONGEST_FIRST.index(one[1].target))
    with _client(url, config, stop) as client:
        parts = list(_parts(in_turn, size, at_once // size))
        _take_all(parts, lambda part: _ask(client, part, config), take, at_once // size, stop)
    return [found[key] for key in keys]


_Part = Mapping[str, Item]
"""What one request asks for, by key."""


def _parts(missing: Sequence[tuple[str, Item]], size: int, lanes: int) -> Iterator[_Part]:
    """Requests of `size` items at most, in order; few items are shared out among all lanes."""
    most = min(size, max(1, len(missing) // lanes))
    part, held = dict[str, Item](), 0
    for key, item in missing:
        given = sum(len(piece) for piece in item.prompt)
        if part and (len(part) == most or held + given > PROMPT_BYTES):
            yield part
            part, held = {}, 0
        part[key] = item
        held += given
    if part:
        yield part


def _take_all(
    parts: Sequence[_Part],
    ask: Callable[[_Part], Iterator[tuple[str, Output]]],
    take: Callable[[str, Output], None],
    lanes: int,
    stop: threading.Event,
) -> None:
    """Gives `take` what `ask` brings of each part, `lanes` parts at once; after Ctrl-C of those under way alone."""
    came: SimpleQueue[tuple[str, Output] | None] = SimpleQueue()
    ended: list[None] = []

    def bring(part: _Part) -> None:
        try:
            for output in ask(part):
                came.put(output)
        finally:
            came.put(None)

    def take_of(asked: Sequence[Future[None]]) -> None:
        while len(ended) < len(asked):
            output = came.get()
            if output is None:
                ended.append(None)
            else:
                take(*output)

    with ThreadPoolExecutor(lanes, "evaluate") as pool:
        asked = [pool.submit(bring, part) for part in parts]
        try:
            take_of(asked)
        except BaseException as error:
            stop.set()
            running = [future for future in asked if not future.cancel()]
            if isinstance(error, KeyboardInterrupt | SystemExit):
                take_of(running)
            raise
        for future in asked:
            future.result()


def _ask(client: Client, part: _Part, config: RequestsConfig) -> Iterator[tuple[str, Output]]:
    """The outputs as they come. What a request for several does not bring is asked for alone, with all its tries."""
    left, started = dict(part), time.perf_counter()
    if len(part) > 1:
        keys = list(part)
        bodies = [request_body(item.prompt, **options(item, config)) for item in part.values()]
        # A server without this route, one that broke off: whatever it was, it may not be so for one alone.
        with suppress(ServerError):
            for index, answer in client.batch(bodies):
                again = isinstance(answer, ServerError) and answer.status in TRIED_AGAIN
                if not again and left.pop(keys[index], None) is not None:
                    yield keys[index], _told(answer, time.perf_counter() - started)
    for key, item in left.items():
        started = time.perf_counter()
        alone: Answer | ServerError
        try:
            alone = client.generate(item.prompt, **options(item, config))
        except Stopped:
            return
        except ServerError as error:
            alone = error
        yield key, _told(alone, time.perf_counter() - started)


def key_of(item: Item, config: RequestsConfig) -> str:
    """Names an item together with all that is sent for it."""
    body = json.dumps(request_body(item.prompt, **options(item, config)), sort_keys=True).encode()
    return f"{item.id} {sha256(body)[:16]}"


def options(item: Item, config: RequestsConfig) -> dict[str, Any]:
    """What `Client.generate` is given beside the prompt."""
    sampling = getattr(config, item.target).model_dump()
    return {**sampling, "target": item.target, "seed": item.seed, "max_images": item.max_images}


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


def _client(url: str, config: RequestsConfig, stop: threading.Event) -> Client:
    return Client(
        url,
        api_key=_key(config.api_key_env),
        timeout_s=config.timeout_s,
        attempts=config.attempts,
        patience_s=config.patience_s,
        retried=TRIED_AGAIN,
        stop=stop,
    )


def _key(variable: str) -> str | None:
    if not variable:
        return None
    if not os.environ.get(variable):
        raise UsageError(f"requests.api_key_env={variable}", "no such variable is set", "set it to the key")
    return os.environ[variable]


def _told(answer: Answer | ServerError, seconds: float) -> Output:
    if isinstance(answer, ServerError):
        return Output((), answer.cause, seconds, answer.attempts)
    return Output(answer.parts, "", seconds, answer.attempts, answer.model)
