"""What a real Ray Serve answers: documents, streams, OpenAI's routes, the command line."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from tests.workflows.serving.conftest import KEY, meters, picture, pixels, wait_for
from tests.workflows.serving.service.conftest import (
    BATCH,
    CAPTION,
    IMAGE,
    NAME,
    Registry,
    events_of,
)
from workflows.cli import app
from workflows.client import Answer, Client, ServerError


@pytest.fixture(scope="module")
def pipeline() -> OneFlowPipeline:
    return OneFlowPipeline.from_pretrained("embedded")


def test_the_server_makes_what_the_pipeline_makes(
    http: httpx2.Client, pipeline: OneFlowPipeline, registry: Registry
) -> None:
    (document,) = pipeline([Prompt(("a red circle",))], seeds=[5])
    answer = http.post("/v1/generate", json=IMAGE).json()
    assert np.abs(pixels(answer["segments"][0]["data"]) - np.asarray(document.images[0], int)).max() <= 1
    assert answer["model"] == {"name": NAME, "version": "1", "run_id": registry.run_id}


def test_a_batch_brings_each_answer_and_refusal(http: httpx2.Client, url: str) -> None:
    alone = [http.post("/v1/generate", json=r).json() for r in (IMAGE, CAPTION)]
    with Client(url, api_key=KEY) as client:
        came = dict(client.batch([IMAGE, {"segments": [{"type": "image", "data": "?"}]}, CAPTION]))
        with pytest.raises(ServerError, match="HTTP 422: requests.0.steps"):
            list(client.batch([{**IMAGE, "steps": 0}]))
    refusal, first, second = came[1], came[0], came[2]
    assert isinstance(refusal, ServerError) and refusal.status == 422 and "segments.0.data" in refusal.cause
    assert isinstance(first, Answer) and isinstance(second, Answer)
    assert np.abs(np.asarray(first.images[0], int) - pixels(alone[0]["segments"][0]["data"])).max() <= 1
    assert (
        second.text == "".join(s["text"] for s in alone[1]["segments"]) and first.model == alone[0]["model"]
    )


def test_what_shares_the_batch_changes_nothing(http: httpx2.Client) -> None:
    alone = [http.post("/v1/generate", json=r).json() for r in (IMAGE, CAPTION)]
    before = meters(http)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda r: http.post("/v1/generate", json=r).json(), [IMAGE, CAPTION] * 2))
    for answer, one in zip(together, alone * 2, strict=True):
        assert answer["trace"] == one["trace"]
        for a, b in zip(answer["segments"], one["segments"], strict=True):
            if a["type"] == "text":
                assert a == b
            else:
                assert np.abs(pixels(a["data"]) - pixels(b["data"])).max() <= 1
    after = meters(http)
    steps = after["oneflow_batch_requests_count"] - before["oneflow_batch_requests_count"]
    assert after["oneflow_batch_requests_sum"] - before["oneflow_batch_requests_sum"] > steps
    assert after["oneflow_steps_total"] - before["oneflow_steps_total"] == steps


def test_a_stream_tells_every_step_and_ends_with_the_answer(http: httpx2.Client) -> None:
    body = {
        **IMAGE,
        "target": "document",
        "seed": 1,
        "steps": 24,
        "max_images": 2,
        "previews": 4,
        "trace": True,
    }
    told, words = [], []
    for name, data in events_of(http, body):
        told.append(name)
        if name == "insertions":
            for gone in data["deletions"]:
                assert words.pop(gone["position"])["id"] == gone["id"]
            for new in data["insertions"]:
                words.insert(new["position"], new)
        if name == "preview":
            assert pixels(data["data"]).shape == (data["height"], data["width"], 3)
            assert data["id"] in {w["id"] for w in words if w["image"]}
    done = data
    assert told[0] == "start" and told[-1] == "done" and told.count("insertions") > 3
    segments = done["segments"]
    assert [w["image"] for w in words].count(True) == sum(s["type"] == "image" for s in segments)
    spoken = "".join(w["token"] for w in words if not w["image"])
    assert spoken == "".join(s["text"] for s in segments if s["type"] == "text")
    (whole,) = [http.post("/v1/generate", json=body).json()]
    assert (whole["trace"], whole["seed"]) == (done["trace"], done["seed"])


def test_many_choices_do_not_hold_up_the_next_request(http: httpx2.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "n": 4,
        "steps": 200,
        "target": "image",
    }
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(http.post, "/v1/chat/completions", json=body)
        wait_for(lambda: meters(http)["oneflow_running_documents"] == BATCH, "a full batch")
        one = http.post("/v1/generate", json=IMAGE)
        assert one.status_code == 200 and not many.done()
    assert [c["index"] for c in many.result().json()["choices"]] == [0, 1, 2, 3]


def test_the_openai_package_works(url: str, http: httpx2.Client) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    (model,) = client.models.list().data
    assert model.id == NAME
    address = f"data:image/png;base64,{picture()}"
    content: Any = [{"type": "image_url", "image_url": {"url": address}}]
    messages: Any = [{"role": "user", "content": content}]
    expected = http.post("/v1/generate", json=CAPTION).json()["segments"][0]["text"]
    chat = client.chat.completions.create(model=NAME, messages=messages, seed=7, n=2)
    assert chat.choices[0].message.content == expected and chat.choices[0].finish_reason == "stop"
    assert chat.usage and chat.usage.prompt_tokens == 1 and chat.usage.completion_tokens > 1
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=messages, seed=7, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage and [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    short = client.chat.completions.create(model=NAME, messages=messages, seed=7, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage and short.usage.completion_tokens == 2

    drawn = http.post("/v1/generate", json=IMAGE).json()["segments"][0]["data"]
    pictured = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "a red circle"}],
        seed=5,
        extra_body={"modalities": ["image"]},
    )
    (image,) = pictured.choices[0].message.images  # type: ignore[attr-defined]
    assert np.abs(pixels(image["image_url"]["url"].partition(",")[2]) - pixels(drawn)).max() <= 1
    images = client.images.generate(
        model=NAME, prompt="a red circle", n=2, response_format="b64_json", extra_body={"seed": 5}
    )
    assert images.data and len(images.data) == 2
    assert np.abs(pixels(images.data[0].b64_json or "") - pixels(drawn)).max() <= 1

    for wrong in ({"model": "gpt-4o"}, {"temperature": 99}, {"tools": []}, {"stop": "x"}):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as caught:
            client.chat.completions.create(**{"model": NAME, "messages": messages, **wrong})
        assert caught.value.param == next(iter(wrong))
    for address in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        content[0]["image_url"]["url"] = address
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=NAME, messages=messages)
        assert caught.value.param == "messages.0.content.0.image_url.url"


def test_the_command_line_asks_a_server(url: str, http: httpx2.Client, tmp_path: Path) -> None:
    drawn = http.post("/v1/generate", json=IMAGE).json()["segments"][0]["data"]
    given = ["--prompt", "a red circle", "--seed", "5", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["generate", "--url", url, "--api-key-env", "TESTS_KEY", *given])
    assert result.exit_code == 0, result.output
    made = np.asarray(Image.open(tmp_path / "image-0.png"), int)
    assert np.abs(made - pixels(drawn)).max() <= 1
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["model"]["name"] == NAME and trace["trace"]["passes"] > 1
