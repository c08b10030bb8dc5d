"""The page's files without a model behind them: what is given out, the stream's reader, the colours."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from oneflow_core.tokenizer import Tokenizer
from tests.workflows.serving.visit import chromium, visit
from workflows.serving.page.routes import router
from workflows.serving.service import free_port
from workflows.serving.wire import GenerateRequest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app, port = FastAPI(), free_port()
    app.include_router(router)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(browser: Browser, url: str) -> Page:
    return visit(browser.new_context(), url).page


def test_nothing_but_the_pages_files_is_given_out(url: str) -> None:
    for name in ("routes.py", "__init__.py", "..%2fapp.py", "%2e%2e/app.py", "none.js"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/page/{name}")
        assert caught.value.code == 404
    with urllib.request.urlopen(f"{url}/page/page.js") as reply:
        assert reply.headers["Content-Type"].startswith("text/javascript")
        assert "unsafe" not in reply.headers["Content-Security-Policy"]


def test_the_forms_limits_are_those_of_the_api(page: Page) -> None:
    inputs = page.locator("#options input[min]").evaluate_all(
        "all => all.map((i) => [i.id, Number(i.min), Number(i.max)])"
    )
    fields = GenerateRequest.model_json_schema()["properties"]
    bounds = {name: next(kind for kind in fields[name]["anyOf"] if "minimum" in kind) for name, *_ in inputs}
    assert {"steps", "guidance", "temperature", "max_images", "max_tokens"} == set(bounds)
    assert inputs == [[name, kind["minimum"], kind["maximum"]] for name, kind in bounds.items()]


def test_events_are_read_however_they_are_cut(page: Page) -> None:
    stream = (
        ': hello\r\nevent: a\rdata: {"token":\ndata: "\u20ac\U0001f41f"}\r\n\r\n'
        "id: 7\ndata:[1]\n\nevent: cut\ndata: 1\n"
    )
    cuts = """async (bytes) => {
      const { eventsOf } = await import("/page/events.js");
      const read = async (parts) => {
        const body = new ReadableStream({
          start(c) { for (const part of parts) c.enqueue(new Uint8Array(part)); c.close(); },
        });
        const found = [];
        for await (const event of eventsOf(body)) found.push(event);
        return JSON.stringify(found);
      };
      const all = [await read(bytes.map((b) => [b]))];
      for (let i = 0; i <= bytes.length; i++) all.push(await read([bytes.slice(0, i), bytes.slice(i)]));
      return [...new Set(all)];
    }"""
    (read,) = page.evaluate(cuts, list(stream.encode()))
    assert json.loads(read) == [
        {"event": "a", "data": {"token": "\u20ac\U0001f41f"}},
        {"event": "message", "data": [1]},
    ]


def test_characters_of_several_tokens_come_whole(page: Page) -> None:
    tokenizer, rng = Tokenizer.from_pretrained("embedded"), np.random.default_rng(0)
    cases = []
    for text in (
        "a \U0001f41f in the sea",
        "\u4f60\u597d, w\u00f6rld \U0001f600\U0001f600",
        "\u0939\u093f\u0928\u094d\u0926\u0940 ok",
    ):
        ids = tokenizer.encode(text)
        for _ in range(5):
            cases.append([[tokenizer.decode([i]) for i in ids], rng.permutation(len(ids)).tolist(), text])
    assert any("\ufffd" in piece for pieces, _, _ in cases for piece in pieces)
    joined = page.evaluate(
        """async (cases) => {
          const { exactPieces } = await import("/page/recording.js");
          return cases.map(([pieces, steps, text]) => exactPieces(pieces, steps, text));
        }""",
        cases,
    )
    for (pieces, _, text), exact in zip(cases, joined, strict=True):
        assert "".join(exact) == text and len(exact) == len(pieces)
        assert all(e == p for e, p in zip(exact, pieces, strict=True) if "\ufffd" not in p)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_even_steps_and_can_be_read(browser: Browser, url: str, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme)
    seen = visit(context, url)
    rgb = np.array(seen.page.evaluate(SHADES))
    context.close()
    ink, shades = rgb[0], rgb[1:]
    light = np.sort(np.stack([luminance(shades), np.broadcast_to(luminance(ink), len(shades))]), 0)
    assert ((light[1] + 0.05) / (light[0] + 0.05)).min() > 4.5
    steps = np.linalg.norm(np.diff(oklab(shades), axis=0), axis=1)
    assert steps.min() > 0.7 * steps.max()
    assert (np.diff(oklab(shades)[:, 0]) < 0).all()


SHADES = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const token = Object.assign(document.createElement("span"), { className: "token word" });
  document.querySelector(".made").append(token);
  const shades = Array.from({ length: 17 }, (_, i) => {
    token.style.setProperty("--t", i / 16);
    return read(getComputedStyle(token).backgroundColor);
  });
  return [read(getComputedStyle(token).color), ...shades];
}"""


def linear(rgb: np.ndarray) -> np.ndarray:
    share = rgb / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """WCAG 2, relative luminance."""
    return linear(rgb) @ np.array([0.2126, 0.7152, 0.0722])


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson 2020."""
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
              [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
              [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear(rgb) @ np.array(to_lms).T) @ np.array(to_lab).T
