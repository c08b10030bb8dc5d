"""What the benchmark serve makes of its turns, and that all sides are asked the same."""

from __future__ import annotations

import io

import numpy as np
import psutil
import pytest
from PIL import Image

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from workflows.bench.serve import CLIENTS, KINDS, MODEL, _result, offline, prompts, steady
from workflows.bench.server import plain_server, server
from workflows.client import Client


def test_rates_and_ratios_by_hand() -> None:
    rates = {
        ("served", "caption"): [10 / 2, 10 / 2],
        ("served", "t2i"): [10 / 3, 10 / 3],
        ("one at a time", "caption"): [4 / 2.8, 4 / 2.8],
        ("one at a time", "t2i"): [10 / 6, 10 / 6],
        ("served, bfloat16", "caption"): [8.0, 8.0],
        ("served, bfloat16", "t2i"): [5.0, 5.0],
        ("one at a time, bfloat16", "caption"): [2.0, 2.0],
        ("one at a time, bfloat16", "t2i"): [2.5, 2.5],
        ("plain Ray Serve", "caption"): [1.25, 1.25],
        ("plain Ray Serve", "t2i"): [10 / 6, 10 / 6],
        ("plain Ray Serve, bfloat16", "caption"): [2.5, 2.5],
        ("plain Ray Serve, bfloat16", "t2i"): [1.0, 1.0],
    }
    loops = {side: [10 / 1.5 if side[1] == "caption" else 10 / 3] * 2 for side in rates}
    # The machine was half as fast while one at a time was measured.
    for side in (("one at a time", "caption"), ("one at a time", "t2i")):
        rates[side], loops[side] = ([rate / 2 for rate in held[side]] for held in (rates, loops))
    told = _result(rates, loops, {"alone_s": 0.3}).to_json()
    assert told["ours"] == pytest.approx(20 / 5) and told["peer"] == pytest.approx(20 / 4.5)
    assert told["ratio"] == pytest.approx(4.5 / 5)
    assert told["batching_speedup"] == pytest.approx(4.0)
    assert told["batching_speedup_bfloat16"] == pytest.approx(3.2)
    assert told["batching_speedup_bfloat16_by_kind"] == pytest.approx({"caption": 3.2, "t2i": 5.0})
    assert told["speedup_over_batch_1"] == pytest.approx(3.5)
    assert told["speedup_over_batch_1_bfloat16"] == pytest.approx(4.0)
    assert told["ratio_by_kind"] == pytest.approx({"caption": 0.75, "t2i": 1.0})
    assert told["documents_per_s"]["one at a time, t2i"] == pytest.approx(10 / 12)


def test_a_rate_is_taken_while_all_clients_ask() -> None:
    """Rounds of 16 that take two seconds each, begun at 100, told in any order; then one every half second."""
    rounds = [100 + 2 * (number // CLIENTS + 1) for number in range(8 * CLIENTS)]
    assert steady(rounds[::-1]) == pytest.approx(8)
    assert steady([100 + number / 2 for number in range(32)]) == pytest.approx(2)
    # The last ones, alone in the batch, are slow.
    assert steady([float(number) for number in range(128)] + [500.0 + number for number in range(16)]) == 1


def test_the_loop_makes_the_documents_that_are_asked_of_the_servers() -> None:
    asked = {kind: prompts(kind, 2) for kind in KINDS}
    assert {item.target for item in asked["caption"]} == {"text"} and len(asked["caption"]) == 2
    assert {item.target for item in asked["t2i"]} == {"image"} and len(asked["t2i"]) == 2
    assert prompts("caption", 2) == asked["caption"]
    assert offline(2)(kind="caption")["seconds"] > 0


def test_the_plain_deployment_answers_as_ours_does() -> None:
    """What it is asked in the benchmark, over HTTP; its documents are the pipeline's."""
    [caption], [picture] = prompts("caption", 1), prompts("t2i", 1)
    pipeline = OneFlowPipeline.from_pretrained(MODEL)
    with plain_server(MODEL) as (url, _), Client(url) as client:
        assert client.health()["model"] == dict(pipeline.identity)
        text = client.generate(caption.prompt, target="text", seed=caption.seed).segments
        image = client.generate(picture.prompt, target="image", seed=picture.seed, max_images=1).segments
    shown = Image.open(io.BytesIO(caption.prompt[0]))  # type: ignore[arg-type]
    [told] = pipeline([Prompt((shown.convert("RGB"),), "text")], seeds=caption.seed)
    [drawn] = pipeline([Prompt(picture.prompt, "image")], seeds=picture.seed, max_images=1)  # type: ignore[arg-type]
    assert list(text) == list(told.segments)
    assert np.array_equal(np.asarray(image[0]), np.asarray(drawn.images[0]))


def test_the_served_model_runs_at_the_priority_of_what_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would give its workers the lowest but four."""
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    with server(MODEL, {"batch": 2}) as (_, pid):
        children = psutil.Process(pid).children(recursive=True)
        [model] = [p for p in children if "workflows.serving.model_process" in p.cmdline()]
        assert model.nice() == psutil.Process().nice()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children)
