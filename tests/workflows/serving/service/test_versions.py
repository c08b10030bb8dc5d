"""A real Ray Serve whose alias moves, and whose replica is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import psutil
from PIL import Image

from tests.workflows.serving.conftest import KEY, meters, wait_for
from tests.workflows.serving.service.conftest import (
    IMAGE,
    SLOW,
    Registry,
    events_of,
)
from workflows.bench.process_memory import processes
from workflows.client import Client
from workflows.evaluation.asking import ask_all
from workflows.evaluation.config import RequestsConfig, SamplingConfig
from workflows.evaluation.item import Item


def test_another_version_takes_over_without_a_failed_request(
    http: httpx2.Client, url: str, registry: Registry
) -> None:
    first, upgraded = http.get("/healthz").json()["model"]["version"], threading.Event()

    def ask(seed: int) -> list[tuple[str, bool]]:
        """Until a request that began after the upgrade is answered."""
        made, last = [], False
        with Client(url, api_key=KEY, attempts=1) as client:
            while not last:
                last = upgraded.is_set()
                answer = client.generate(["a red circle"], seed=seed, steps=8)
                made.append((answer.model["version"], bool(answer.images)))
        return made

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(ask, seed) for seed in range(4)]
        try:
            second = registry.add()
            registry.point(second)
            told = wait_for(lambda: http.get("/healthz").json()["upgrade"], "an upgrade")
        finally:
            upgraded.set()
    assert (told["version"], told["outcome"]) == (second, "done")
    for asker in askers:
        versions = [version for version, drawn in asker.result() if drawn]
        assert len(versions) == len(asker.result()) and set(versions) == {first, second}
        assert versions == sorted(versions, key=int)
    assert meters(http)['oneflow_upgrades_total{outcome="done"}'] == 1


def test_a_version_that_does_not_load_leaves_the_old_one(http: httpx2.Client, registry: Registry) -> None:
    before = http.get("/healthz").json()["model"]["version"]
    broken = registry.add(broken=True)
    registry.point(broken)
    told = wait_for(
        lambda: (u := http.get("/healthz").json()["upgrade"]) and u["outcome"] == "failed" and u, "a report"
    )
    assert told["version"] == broken and told["cause"] and "Traceback" not in told["cause"]
    assert http.post("/v1/generate", json=IMAGE).json()["model"]["version"] == before
    registry.point(before)
    wait_for(lambda: http.get("/healthz").json()["upgrade"] is None, "the report to be dropped")


def replica_pid() -> int:

    children = psutil.Process().children(recursive=True)
    (pid,) = [p.pid for p in children if "ServeReplica:oneflow" in " ".join(p.cmdline())]
    return int(pid)


def test_a_killed_replica_costs_503_and_comes_back_though_the_alias_is_broken(
    http: httpx2.Client, url: str, registry: Registry
) -> None:
    streamed: list[str] = []
    registry.point(registry.add(broken=True))

    def stream() -> None:
        streamed.extend(json.dumps([name, data]) for name, data in events_of(http, SLOW))

    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(http.post, "/v1/generate", json=SLOW)
        grown = pool.submit(stream)
        wait_for(
            lambda: meters(http)["oneflow_running_documents"] == 2 and len(streamed) > 1, "two under way"
        )
        os.kill(replica_pid(), signal.SIGKILL)
        reply = whole.result(timeout=300)
        grown.result(timeout=300)
    assert reply.status_code == 503 and set(reply.json()["error"]) == {"field", "cause", "mend"}
    assert json.loads(streamed[-1])[0] == "error"
    with Client(url, api_key=KEY, attempts=30) as client:
        answer = client.generate(["a red circle"], seed=5)
        assert answer.images and answer.model["version"] == "1"
        assert client.health()["upgrade"]["outcome"] == "failed"


def test_a_killed_model_costs_503_and_comes_back(http: httpx2.Client, url: str) -> None:
    (model,) = [p for role, p in processes(os.getpid()) if role == "model"]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http.post, "/v1/generate", json=SLOW)
        wait_for(lambda: meters(http)["oneflow_running_documents"] == 1, "one under way")
        model.kill()
        reply = asked.result(timeout=120)
    assert reply.status_code == 503 and set(reply.json()["error"]) == {"field", "cause", "mend"}
    with Client(url, api_key=KEY, attempts=30) as client:
        assert client.generate(["a red circle"], seed=5).images


def test_an_evaluation_outlives_its_model(http: httpx2.Client, url: str) -> None:
    """What a killed model had of batches is asked for again, and is what it would have been."""
    items = [
        Item(str(n), "t2i/single", "heldout_random", ("a red circle",), "image", n, "", max_images=1)
        for n in range(8)
    ]
    sampling = SamplingConfig(steps=40)
    config = RequestsConfig(concurrency=8, attempts=30, api_key_env="TESTS_KEY", image=sampling)
    expected = ask_all(url, items, config)
    assert not any(output.error for output in expected)

    def models() -> list[psutil.Process]:
        return [p for role, p in processes(os.getpid()) if role == "model"]

    # A new replica tries the version that does not load once more, in a process of its own.
    wait_for(lambda: len(models()) == 1, "one model")
    (model,) = models()
    before = meters(http)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_all, url, items, config)
        left = 'oneflow_documents_total{event="left"}'
        wait_for(lambda: meters(http)[left] > before[left], "one done")
        model.kill()
        outputs = asked.result(timeout=300)
    assert [output.error for output in outputs] == [""] * 8 and any(o.attempts > 1 for o in outputs)
    for ours, theirs in zip(outputs, expected, strict=True):
        a, b = (np.asarray(Image.open(io.BytesIO(o.images[0])), int) for o in (ours, theirs))
        assert np.abs(a - b).max() <= 1
