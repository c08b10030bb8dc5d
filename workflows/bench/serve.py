"""A served model over HTTP beside a bare loop of the pipeline, and beside a server that takes one request at a time.

All sides have one core for the network and make the same documents: captions of pictures, and pictures of texts, of
the embedded model. The servers are `oneflow serve` as a user starts it, each with a Ray of its own, asked by
`CLIENTS` clients at once; they differ in --batch. The loop calls the pipeline with as many prompts at once, in
memory: no HTTP, no PNG. They take turns, so that what else the machine does falls on all.

`ratio` is documents per second of the server to those of the loop, over both kinds in equal numbers; `batching_speedup`
is the server to the one with --batch 1, on captions. `load` is an open loop: requests come at random moments at a
share of what the server was measured to do, whether earlier ones are answered or not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import numpy as np

from workflows.bench.child import Child
from workflows.bench.result import Result
from workflows.bench.server import server
from workflows.client import Client
from workflows.errors import OneFlowError
from workflows.evaluation.config import EvaluateConfig, ItemsConfig
from workflows.evaluation.item import Item

MODEL = "embedded"
CLIENTS = 16
DOCUMENTS = 48
"""Of each kind in a turn."""
LOADS = (0.5, 0.8)
LOAD_S = 30.0
PATIENCE_S = 300.0
KINDS = ("caption", "t2i")


def run(runs: int) -> Result:
    """`ratio` to the bare loop, `batching_speedup`, and latencies under load."""
    return measure(runs)


def measure(runs: int, documents: int = DOCUMENTS, load_s: float = LOAD_S) -> Result:
    """`runs` turns after one to warm up; `documents` of each kind a turn, `load_s` seconds at each load."""
    asked = {kind: prompts(kind, documents) for kind in KINDS}
    with ExitStack() as stack:
        whole = stack.enter_context(_server(CLIENTS))
        single = stack.enter_context(_server(1))
        loop = stack.enter_context(Child("workflows.bench.serve:offline", {"documents": documents}))
        sides: dict[str, Callable[[str], float]] = {
            "served": lambda kind: _ask_all(whole, asked[kind]),
            "one at a time": lambda kind: _ask_all(single, asked[kind]),
            "loop": lambda kind: float(loop.ask(kind=kind)["seconds"]),
        }
        seconds: dict[tuple[str, str], list[float]] = {(s, k): [] for s in sides for k in KINDS}
        for number in range(runs + 1):
            for (side, kind), held in seconds.items():
                held += [sides[side](kind)][: number and 1]
        rate = 2 * documents / median(map(sum, zip(*(seconds["served", k] for k in KINDS), strict=True)))
        alone = _alone(whole, asked)
        load = {f"{share:g}": _under_load(whole, asked, share * rate, load_s) for share in LOADS}
    return _result(documents, seconds, {"alone_s": alone, "load": load})


def _result(
    documents: int, seconds: Mapping[tuple[str, str], list[float]], more: Mapping[str, Any]
) -> Result:
    rates = {f"{side}, {kind}": [documents / s for s in held] for (side, kind), held in seconds.items()}
    both = {
        side: [2 * documents / (a + b) for a, b in zip(*(seconds[side, k] for k in KINDS), strict=True)]
        for side in ("served", "loop")
    }

    def by_kind(side: str) -> dict[str, float]:
        return {k: median(rates[f"served, {k}"]) / median(rates[f"{side}, {k}"]) for k in KINDS}

    extra = {
        "batching_speedup": by_kind("one at a time")["caption"],
        "ratio_by_kind": by_kind("loop"),
        "batching_speedup_by_kind": by_kind("one at a time"),
        "documents_per_s": {name: median(held) for name, held in rates.items()},
        **more,
    }
    packages = ("torch", "ray", "fastapi", "httpx2")
    return Result("serve", "documents/s", both["served"], both["loop"], packages, extra, rates)


def prompts(kind: str, documents: int) -> list[Item]:
    """Items of the suite shapes, the same for all sides."""
    from workflows.evaluation.suites.shapes import items

    wanted = {name: 0 for name in ItemsConfig.model_fields} | {
        f"{kind}_multi": documents,
        "combinations": 0.0,
    }
    return items(EvaluateConfig(items=ItemsConfig(**wanted)))


@contextmanager
def _server(batch: int) -> Iterator[Client]:
    with (
        server(MODEL, {"batch": batch, "queue": 8 * CLIENTS}) as (url, _),
        Client(url, timeout_s=PATIENCE_S, patience_s=0) as client,
    ):
        yield client


def _ask(client: Client, item: Item) -> None:
    answer = client.generate(item.prompt, target=item.target, seed=item.seed, max_images=item.max_images)
    if not answer.segments and item.target == "image":
        raise OneFlowError(item.id, "no image came back", "see the server's log")


def _ask_all(client: Client, items: Sequence[Item]) -> float:
    """Seconds until all are answered, by `CLIENTS` clients."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda item: _ask(client, item), items))
        return time.perf_counter() - begun


def _alone(client: Client, asked: Mapping[str, Sequence[Item]]) -> float:
    """Seconds to an answer when nobody else asks."""
    held = []
    for item in [item for kind in KINDS for item in asked[kind][:4]]:
        begun = time.perf_counter()
        _ask(client, item)
        held.append(time.perf_counter() - begun)
    return median(held)


def _under_load(
    client: Client, asked: Mapping[str, Sequence[Item]], rate: float, seconds: float
) -> dict[str, float]:
    """Seconds to the answer, both kinds in turn, of requests that come at `rate` a second (Poisson)."""
    rng, moments, at = random.Random(0), list[float](), 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        moments.append(at)
    begun = time.perf_counter()

    def one(number: int) -> float:
        items = asked[KINDS[number % len(KINDS)]]
        due = begun + moments[number]
        time.sleep(max(0.0, due - time.perf_counter()))
        _ask(client, items[number // len(KINDS) % len(items)])
        return time.perf_counter() - due

    with ThreadPoolExecutor(256) as pool:
        p50, p99 = np.quantile(list(pool.map(one, range(len(moments)))), [0.5, 0.99]).tolist()
    return {"requests_per_s": rate, "requests": len(moments), "p50_s": p50, "p99_s": p99}


def offline(documents: int) -> Callable[..., dict[str, float]]:
    """The bare loop; answers with the seconds that a kind took."""
    from workflows.bench.bare import BareLoop

    loop, asked = BareLoop(MODEL), {kind: prompts(kind, documents) for kind in KINDS}

    def answer(kind: str) -> dict[str, float]:
        return {"seconds": loop.seconds(asked[kind], CLIENTS)}

    return answer
