"""The engine with a tiny model: answers, refusals and counts, without any server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt
from tests.tiny import tiny_parts
from workflows.serving.engine import Engine, Job, Reply
from workflows.serving.wire import Limits

TEXT = {"type": "text", "text": "a red circle"}


@pytest.fixture
def engine() -> Engine:
    return Engine(
        OneFlowPipeline(tiny_parts(), {"name": "tiny", "version": "3", "run_id": "r"}), Limits(1 << 20)
    )


def respond(engine: Engine, *bodies: Any) -> list[Reply]:
    """The replies to requests that arrive at once and are computed as one batch."""

    async def all_of_them() -> list[Reply]:
        waiting: list[tuple[Job, asyncio.Future[GeneratedDocument]]] = []

        async def together(job: Job) -> GeneratedDocument:
            future: asyncio.Future[GeneratedDocument] = asyncio.get_running_loop().create_future()
            waiting.append((job, future))
            return await future

        async def flush() -> None:
            await asyncio.sleep(0.3)
            if waiting:
                documents = engine.compute([job for job, _ in waiting])
                for (_, future), document in zip(waiting, documents, strict=True):
                    future.set_result(document)

        data = [b if isinstance(b, bytes) else json.dumps(b).encode() for b in bodies]
        replies = await asyncio.gather(*(engine.respond(b, together) for b in data), flush())
        return [r for r in replies if r is not None]

    return asyncio.run(all_of_them())


def picture(size: tuple[int, int] = (90, 60)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 10)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels(segment: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(segment["data"]))), int)


REQUESTS = [
    {"segments": [TEXT], "target": "image", "seed": 5},
    {"segments": [{"type": "image", "data": picture()}], "target": "text", "seed": 6, "trace": True},
    {"segments": [TEXT], "target": "document", "seed": 7, "steps": 9, "max_images": 1},
    {"segments": [], "target": "image", "seed": 8, "guidance": 1.0},
]


def test_an_image_comes_with_the_model_that_made_it(engine: Engine) -> None:
    (reply,) = respond(engine, REQUESTS[0])
    assert reply.status == 200
    (segment,) = reply.body["segments"]
    assert (segment["type"], segment["width"], segment["height"]) == ("image", 64, 64)
    (document,) = engine.pipeline([Prompt(("a red circle",))], seeds=[5])
    assert np.abs(pixels(segment) - np.asarray(document.images[0], int)).max() <= 1
    assert reply.body["model"] == {"name": "tiny", "version": "3", "run_id": "r"}
    assert reply.body["trace"] is None and reply.body["seconds"] > 0


def test_a_text_comes_with_its_trace(engine: Engine) -> None:
    (reply,) = respond(engine, REQUESTS[1])
    text = "".join(s["text"] for s in reply.body["segments"])
    assert text and "".join(i["text"] for i in reply.body["trace"]["insertions"]) == text
    json.dumps(reply.body, allow_nan=False)


def test_requests_share_a_batch_and_do_not_notice(engine: Engine) -> None:
    alone = [respond(engine, r)[0] for r in REQUESTS]
    together = respond(engine, *REQUESTS, {"steps": 0}, *REQUESTS)
    assert [r.status for r in together] == [200] * 4 + [422] + [200] * 4
    for one, other in zip(alone * 2, [r for r in together if r.status == 200], strict=True):
        for a, b in zip(one.body["segments"], other.body["segments"], strict=True):
            if a["type"] == "text":
                assert a == b
            else:
                assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_without_a_seed_one_is_drawn_and_told(engine: Engine) -> None:
    first, second = respond(engine, {"segments": [TEXT]}, {"segments": [TEXT]})
    assert first.body["seed"] != second.body["seed"]
    (again,) = respond(engine, {"segments": [TEXT], "seed": first.body["seed"]})
    assert np.abs(pixels(again.body["segments"][0]) - pixels(first.body["segments"][0])).max() <= 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        ({"segments": [{"type": "image", "data": "/etc/passwd"}]}, 422),
        ({"segments": [{"type": "image", "data": picture((3000, 3000))}]}, 413),
        ({"segments": [{"type": "text", "text": "x" * 5000}]}, 413),
        (b" " * ((1 << 20) + 1), 413),
    ],
)
def test_bad_requests_never_reach_the_model(engine: Engine, body: Any, status: int) -> None:
    (reply,) = respond(engine, body)
    assert reply.status == status
    assert set(reply.body["error"]) == {"field", "cause", "mend"}
    assert "oneflow_batch_requests_count 0.0" in engine.meters.text().decode()


def test_what_breaks_inside_is_told_without_its_secrets(engine: Engine) -> None:
    async def broken(job: Job) -> GeneratedDocument:
        raise RuntimeError("s3://bucket?key=secret")

    reply = asyncio.run(engine.respond(json.dumps(REQUESTS[0]).encode(), broken))
    assert reply.status == 500
    assert "secret" not in json.dumps(reply.body)


def test_metrics_count_what_happened(engine: Engine) -> None:
    respond(engine, *REQUESTS[:2], b"{")
    rows = _rows(engine.meters.text().decode().splitlines())
    assert rows['oneflow_requests_total{status="200"}'] == 2
    assert rows['oneflow_requests_total{status="400"}'] == 1
    assert rows['oneflow_segments_total{type="image"}'] == 1
    assert (rows["oneflow_batch_requests_sum"], rows["oneflow_batch_requests_count"]) == (2, 1)
    assert rows["oneflow_waiting"] == 0


def _rows(lines: Sequence[str]) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
