"""A served model over HTTP beside a bare loop of the pipeline, and beside a server that takes one request at a time.

All sides have one core for the network and make the same documents: captions of pictures, and pictures of texts, of
the embedded model. The servers are `oneflow serve` as a user starts it, each with a Ray of its own, asked by
`CLIENTS` clients at once; they differ in --batch and --dtype. The loop calls the pipeline with as many prompts at once,
in memory: no HTTP, no PNG. Each server runs alone and takes turns with the loop, some seconds each: what a machine
does in a second changes over minutes, so every rate of a server is held against the loop's of the same minute. A
server's is taken while all clients ask: at the end of a turn, when places stay empty, there is nothing to measure.

`ratio` is documents per second of the server to those of the loop, in float32, over both kinds in equal numbers;
`batching_speedup` is the server to a plain deployment of Ray Serve, which has one request after the other
(`plain_serve.py`), on captions, in float32. `speedup_over_batch_1` is the server to itself with --batch 1, which
prepares the next ones meanwhile. `batching_speedup_bfloat16` and `speedup_over_batch_1_bfloat16` are the same with
both in bfloat16. With --device cuda all sides are on the GPU, in float32. Two servers' rates are taken by the loop's
beside each. `load` is an open loop: requests come at random moments at a share of what the server was measured to do,
whether earlier ones are answered or not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

from workflows.bench.child import Child
from workflows.bench.result import Result
from workflows.bench.server import plain_server, server
from workflows.client import Client
from workflows.errors import OneFlowError
from workflows.evaluation.config import EvaluateConfig, ItemsConfig
from workflows.evaluation.item import Item

MODEL = "embedded"
CLIENTS = 16
DOCUMENTS = 128
"""Of each kind in a turn."""
SINGLES = 32
"""As many for a server that takes one at a time."""
TURNS = 3
"""Of a server and the loop, for each kind, in a run."""
LOADS = (0.5, 0.8)
LOAD_S = 30.0
PATIENCE_S = 300.0
KINDS = ("caption", "t2i")
SERVERS: dict[str, dict[str, Any]] = {
    "served": {"batch": CLIENTS},
    "one at a time": {"batch": 1},
    "served, bfloat16": {"batch": CLIENTS, "dtype": "bfloat16"},
    "one at a time, bfloat16": {"batch": 1, "dtype": "bfloat16"},
}
"""Options of `oneflow serve`."""
PLAIN = {"plain Ray Serve": "float32", "plain Ray Serve, bfloat16": "bfloat16"}
"""Deployments that call the pipeline in their handler, one request after the other, and their dtype."""
ON_A_GPU = {"served": {"batch": CLIENTS, "gpus": 1}, "one at a time": {"batch": 1, "gpus": 1}}
"""In place of `SERVERS` there."""
PLAIN_ON_A_GPU = {"plain Ray Serve": "float32"}
WARM = 16
Rates = dict[tuple[str, str], list[float]]


def run(runs: int, device: str = "cpu") -> Result:
    """`ratio` to the bare loop, `batching_speedup`, and latencies under load."""
    return measure(runs, device=device)


def measure(
    runs: int,
    documents: int = DOCUMENTS,
    load_s: float = LOAD_S,
    turns: int = TURNS,
    device: str = "cpu",
) -> Result:
    """`turns` of each server and kind a run, `documents` in each, and in the first `load_s` seconds at each load."""
    sides: dict[str, dict[str, Any]] = ON_A_GPU if device == "cuda" else SERVERS
    plain = PLAIN_ON_A_GPU if device == "cuda" else PLAIN
    asked = {kind: prompts(kind, documents) for kind in KINDS}
    few = {kind: items[:SINGLES] for kind, items in asked.items()}
    rates: Rates = {(name, kind): [] for name in (*sides, *plain) for kind in KINDS}
    loops: Rates = {side: [] for side in rates}
    more: dict[str, Any] = {}
    with Child("workflows.bench.serve:offline", {"documents": documents, "device": device}) as loop:
        for run in range(runs):
            for name in (*sides, *plain):
                given = asked if sides.get(name, {}).get("batch") == CLIENTS else few
                with _server(sides.get(name), plain.get(name), device) as client:
                    for kind in KINDS:
                        _ask_all(client, few[kind][:WARM])
                        for _ in range(turns):
                            loops[name, kind].append(documents / float(loop.ask(kind=kind)["seconds"]))
                            rates[name, kind].append(_ask_all(client, given[kind]))
                    if name == "served" and run == 0:
                        more = _latencies(client, asked, median(_over_both(rates, name)), load_s)
    return _result(rates, loops, {"device": device, **more})


def _latencies(
    client: Client, asked: Mapping[str, Sequence[Item]], rate: float, load_s: float
) -> dict[str, Any]:
    load = {f"{share:g}": _under_load(client, asked, share * rate, load_s) for share in LOADS}
    return {"alone_s": _alone(client, asked), "load": load}


def _over_both(rates: Rates, side: str) -> list[float]:
    """Documents a second of a side, as many of one kind as of the other."""
    return [2 / sum(1 / rate for rate in turn) for turn in zip(*(rates[side, k] for k in KINDS), strict=True)]


def _result(rates: Rates, loops: Rates, more: Mapping[str, Any]) -> Result:
    """From documents a second of each server and kind, and of the loop beside it, turn by turn."""

    def to_loop(side: str) -> dict[str, float]:
        return {k: median(rates[side, k]) / median(loops[side, k]) for k in KINDS}

    def over(many: str, single: str) -> dict[str, float]:
        return {k: to_loop(many)[k] / to_loop(single)[k] for k in KINDS}

    extra: dict[str, Any] = {"ratio_by_kind": to_loop("served")}
    for suffix in ("", ", bfloat16"):
        if (f"served{suffix}", "caption") in rates:
            key = suffix.replace(", ", "_")
            others = {"batching_speedup": "plain Ray Serve", "speedup_over_batch_1": "one at a time"}
            for name, single in others.items():
                by_kind = over(f"served{suffix}", f"{single}{suffix}")
                extra |= {f"{name}{key}": by_kind["caption"], f"{name}{key}_by_kind": by_kind}
    named = {f"{side}, {kind}": held for (side, kind), held in rates.items()}
    named |= {f"loop beside {side}, {kind}": held for (side, kind), held in loops.items()}
    extra |= {"documents_per_s": {name: median(held) for name, held in named.items()}, **more}
    packages = ("torch", "ray", "fastapi", "httpx2")
    ours, peer = _over_both(rates, "served"), _over_both(loops, "served")
    return Result("serve", "documents/s", ours, peer, packages, extra, named)


def prompts(kind: str, documents: int) -> list[Item]:
    """Items of the suite shapes, the same for all sides."""
    from workflows.evaluation.suites.shapes import items

    wanted = {name: 0 for name in ItemsConfig.model_fields} | {
        f"{kind}_multi": documents,
        "combinations": 0.0,
    }
    return items(EvaluateConfig(items=ItemsConfig(**wanted)))


@contextmanager
def _server(options: Mapping[str, Any] | None, plain_dtype: str | None, device: str) -> Iterator[Client]:
    """Ours with these options, or else a plain one."""
    if options is None:
        assert plain_dtype is not None
        started = plain_server(MODEL, plain_dtype, device)
    else:
        started = server(MODEL, {**options, "queue": 8 * CLIENTS})
    with started as (url, _), Client(url, timeout_s=PATIENCE_S, patience_s=0) as client:
        yield client


def _ask(client: Client, item: Item) -> float:
    """The moment of the answer."""
    answer = client.generate(item.prompt, target=item.target, seed=item.seed, max_images=item.max_images)
    if not answer.segments and item.target == "image":
        raise OneFlowError(item.id, "no image came back", "see the server's log")
    return time.perf_counter()


def _ask_all(client: Client, items: Sequence[Item]) -> float:
    """Documents a second while `CLIENTS` clients ask: from when as many are done until as many are left."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        done = list(pool.map(lambda item: _ask(client, item), items))
    return steady(done)


def steady(done: Sequence[float]) -> float:
    """From the moments at which documents were done, documents a second in between: as long as all clients ask."""
    edge = min(CLIENTS, len(done) // 4)
    first, *_, last = moments = sorted(done)[max(edge - 1, 0) : len(done) - edge]
    return (len(moments) - 1) / (last - first)


def _alone(client: Client, asked: Mapping[str, Sequence[Item]]) -> float:
    """Seconds to an answer when nobody else asks."""
    held = []
    for item in [item for kind in KINDS for item in asked[kind][:4]]:
        begun = time.perf_counter()
        held.append(_ask(client, item) - begun)
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
        return _ask(client, items[number // len(KINDS) % len(items)]) - due

    with ThreadPoolExecutor(256) as pool:
        p50, p99 = np.quantile(list(pool.map(one, range(len(moments)))), [0.5, 0.99]).tolist()
    return {"requests_per_s": rate, "requests": len(moments), "p50_s": p50, "p99_s": p99}


def offline(documents: int, device: str = "cpu") -> Callable[..., dict[str, float]]:
    """The bare loop; answers with the seconds that a kind took."""
    from workflows.bench.bare import BareLoop

    loop, asked = BareLoop(MODEL, device), {kind: prompts(kind, documents) for kind in KINDS}

    def answer(kind: str) -> dict[str, float]:
        return {"seconds": loop.seconds(asked[kind], CLIENTS)}

    return answer
