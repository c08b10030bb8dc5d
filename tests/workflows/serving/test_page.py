"""The page at `/` in a real browser, against a real Ray Serve with the embedded model."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from oneflow_core.shapes import parse, render
from oneflow_core.shapes.scene import Object, Scene
from tests.workflows.serving.conftest import KEY, pixels
from tests.workflows.serving.visit import Visit, chromium, visit
from workflows.serving.service import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

HEADERS = {"Authorization": f"Bearer {KEY}"}
STORY = "A large red circle"
LONG = 200 * f"{STORY}. "
"""A prompt whose every step takes a while."""
COUNTS = """() => {
  window.counts = [];
  new MutationObserver(() => counts.push(document.querySelectorAll(".token").length))
    .observe(document.querySelector(".made"), { childList: true });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(browser: Browser, cluster: Path) -> Iterator[str]:
    """A server with one place and one that waits for it. `browser` first: without one no Ray is started."""
    os.environ["TESTS_KEY"] = KEY
    with serving("embedded", batch=1, queue=1, api_key_env="TESTS_KEY") as address:
        yield address
    del os.environ["TESTS_KEY"]


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Visit]:
    """The page in a wide window. Whatever the test does: no error in its console, no request to another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, extra_http_headers=HEADERS)
    seen = visit(context, url)
    yield seen
    context.close()
    assert not seen.problems


def ask(url: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/v1/generate", json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=300) as reply:
        return dict(json.load(reply))


def test_a_document_grows_before_the_eyes_and_is_the_one_that_the_api_makes(opened: Visit, url: str) -> None:
    opened.page.evaluate(COUNTS)
    opened.generate(prompt=STORY, target="a document of both", steps=24)
    counts = opened.page.evaluate("counts")
    assert sum(0 < count < counts[-1] for count in counts) > 3
    answer = ask(url, segments=[{"type": "text", "text": STORY}], target="document", seed=3, steps=24)
    assert opened.text == "".join(s.get("text", "") for s in answer["segments"]) != ""
    drawn = [s for s in answer["segments"] if s["type"] == "image"]
    assert opened.page.locator(".picture img").count() == len(drawn) > 0
    assert np.abs(opened.image() - pixels(drawn[0]["data"])).max() <= 1
    order = opened.page.locator(".made > *").evaluate_all("all => all.map((n) => n.className.split(' ')[0])")
    kinds = [kind for i, kind in enumerate(order) if kind == "picture" or order[i - 1 : i] != ["token"]]
    assert kinds == ["picture" if s["type"] == "image" else "token" for s in answer["segments"]]


def test_the_scrubber_goes_back_and_the_replay_forth(opened: Visit) -> None:
    opened.generate(prompt=STORY, target="a document of both", steps=24)
    whole, text = opened.page.locator(".token").count(), opened.text
    assert opened.seek("Home") == 0
    growing = [
        opened.seek("ArrowRight")
        for _ in range(int(opened.page.locator(".scrubber").get_attribute("max") or 0))
    ]
    assert growing == sorted(growing) and 0 < growing[5] < growing[-1] == whole
    assert opened.text == text
    opened.page.locator(".scrubber").fill("20")
    opened.page.get_by_role("button", name="Play").press("Enter")
    opened.page.get_by_role("button", name="Pause").wait_for()
    opened.page.get_by_role("button", name="Play").wait_for()
    assert opened.text == text
    step = opened.page.locator(".token").first.get_attribute("data-step")
    opened.page.locator(".token").first.hover()
    assert f"step {step}, time 0." in opened.page.locator(".readout").inner_text()


def test_previews_come_nearer_to_the_image(opened: Visit) -> None:
    opened.generate(prompt="a large blue square", steps=16)
    final = opened.image()
    moments = int(opened.page.locator(".scrubber").get_attribute("max") or 0)
    away = []
    for _ in range(moments - 1):
        opened.seek("ArrowLeft")
        if opened.page.locator(".picture img[src]:not([hidden])").count():
            away.append(float(((opened.image() - final) ** 2).mean()))
    assert len(away) >= 10
    assert away[0] < away[len(away) // 2] < away[-1]


def test_an_uploaded_image_gets_its_caption(opened: Visit, url: str, tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    Image.fromarray(render(Scene([Object(1, 1, "star", "yellow", "large")]))).save(file)
    opened.page.get_by_label("Choose images").set_input_files(file)
    opened.page.get_by_alt_text("scene.png").wait_for()
    opened.generate(target="a text")
    data = base64.b64encode(file.read_bytes()).decode()
    answer = ask(url, segments=[{"type": "image", "data": data}], target="text", seed=3)
    assert opened.text == answer["segments"][0]["text"]
    (mention,) = parse(opened.text) or ()
    assert (mention.shape, mention.colour) == ("star", "yellow")
    opened.page.get_by_role("button", name="Remove scene.png").click()
    assert opened.page.locator("#given li").count() == 0


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_images_are_dropped_and_pasted_and_large_ones_shrunk(opened: Visit, how: str) -> None:
    opened.page.evaluate(
        """async (how) => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 2600, height: 2000 });
          canvas.getContext("2d").fillRect(0, 0, 1300, 2000);
          const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
          const data = new DataTransfer();
          data.items.add(new File([blob], "photo.png", { type: "image/png" }));
          data.items.add(new File(["no image"], "note.png", { type: "image/png" }));
          const made = how === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.getElementById("drop").dispatchEvent(made);
        }""",
        how,
    )
    opened.page.get_by_text("note.png: the browser reads no image").wait_for()
    assert not opened.page.get_by_role("button", name="Try again").is_visible()
    size = opened.page.get_by_alt_text("photo.png").evaluate(
        "image => [image.naturalWidth, image.naturalHeight]"
    )
    assert size[0] * size[1] <= 1 << 20 and size[0] / size[1] == pytest.approx(1.3, rel=0.01)
    opened.generate(target="a text")


def test_stop_frees_the_place_and_keeps_what_came(opened: Visit, url: str) -> None:
    opened.fill(prompt=LONG, steps=200)
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.locator(".picture img[src]").wait_for()
    opened.page.keyboard.press("Escape")
    opened.page.get_by_text("Stopped").wait_for()
    assert opened.page.locator(".picture.unfinished").count() == 1
    # The only place of the replica would be taken for longer than this short one needs.
    ask(url, segments=[], target="text", seed=1, steps=1)
    rows = urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=HEADERS)).read().decode()
    assert 'oneflow_documents_total{event="cancelled"} ' in rows


def test_who_waits_is_told_and_so_is_who_finds_the_queue_full(
    opened: Visit, browser: Browser, url: str
) -> None:
    context = browser.new_context(extra_http_headers=HEADERS)
    first, second = visit(context, url), visit(context, url)
    for seen in (first, second, opened):
        seen.fill(prompt=LONG, steps=200)
    first.page.get_by_role("button", name="Generate").click()
    first.page.locator(".picture").wait_for()
    second.page.get_by_role("button", name="Generate").click()
    second.page.get_by_text("Waiting in the queue").wait_for()
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.get_by_role("alert").get_by_text("the queue is full").wait_for()
    assert opened.page.get_by_role("alert").get_by_text("try again in").count() == 1
    first.page.keyboard.press("Escape")
    second.page.locator(".picture").wait_for()
    second.page.keyboard.press("Escape")
    second.page.get_by_text("Stopped").wait_for()
    opened.fill(prompt="a red ring", steps=2)
    opened.page.get_by_role("button", name="Try again").click()
    opened.done()
    assert opened.page.get_by_role("alert").inner_text() == ""
    assert "status of 429" in opened.problems.pop()
    context.close()
    assert not first.problems + second.problems


def test_a_stream_that_is_cut_says_so_and_keeps_what_came(opened: Visit) -> None:
    """The real server's stream, and the connection lost in the middle of an event."""

    def cut(route: Route) -> None:
        reply = route.fetch()
        route.fulfill(response=reply, body=reply.body()[: len(reply.body()) // 2])

    opened.page.route("**/v1/generate", cut)
    opened.fill(prompt="a red ring", steps=8)
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.get_by_role("alert").get_by_text("the stream ended before the document was done").wait_for()
    assert opened.page.locator(".picture.unfinished img[src]").count() == 1
    opened.page.unroute("**/v1/generate")
    opened.page.get_by_role("button", name="Try again").click()
    opened.done()
    assert opened.page.locator(".picture.unfinished").count() == 0


def test_a_server_with_a_key_asks_for_it_and_the_page_forgets_it(browser: Browser, url: str) -> None:
    context = browser.new_context()
    seen = visit(context, url)
    assert not seen.page.get_by_label("API key").is_visible()
    seen.fill(prompt="a red ring", steps=2)
    seen.page.get_by_role("button", name="Generate").click()
    seen.page.get_by_role("alert").get_by_text("no valid API key").wait_for()
    seen.page.keyboard.type(KEY)
    seen.page.keyboard.press("Enter")
    seen.done()
    assert len(seen.problems) == 1 and "status of 401" in seen.problems[0]
    assert seen.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    seen.page.reload()
    assert seen.page.locator("#key").input_value() == ""
    context.close()


def test_a_keyboard_is_enough(opened: Visit) -> None:
    names = []
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        names.append(
            opened.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )
        if names[-1] == "prompt":
            opened.page.keyboard.type("a red ring")
        if opened.page.evaluate("document.activeElement.name") == "target":
            opened.page.keyboard.press("ArrowRight")
        if names[-1] == "steps":
            opened.page.keyboard.press("Home")
        if names[-1] == "go":
            break
    assert names[0] == "Skip to what was made"
    assert [n for n in names if n in ("prompt", "file", "steps", "guidance", "temperature", "seed", "go")] == [
        "prompt", "file", "steps", "guidance", "temperature", "seed", "go",
    ]  # fmt: skip
    assert opened.page.locator("output[for=steps]").inner_text() == "1"
    opened.page.keyboard.press("Enter")
    opened.done()
    assert opened.page.evaluate("document.activeElement.id") == "go"
    assert opened.page.locator("input[value=text]").is_checked()
    opened.page.get_by_role("slider", name="Moment of the generation").focus()
    assert opened.seek("Home") == 0


def test_examples_run_at_once(opened: Visit) -> None:
    for name, target in (
        ("Draw a scene", ".picture"),
        ("Describe a picture", ".token"),
        ("Tell a story", ".picture"),
    ):
        opened.page.get_by_role("button", name=name).click()
        opened.page.get_by_role("button", name="Stop").wait_for()
        opened.done()
        assert opened.page.locator(target).count() > 0


def test_a_refusal_names_its_field(opened: Visit) -> None:
    opened.fill(prompt="a red ring")
    opened.page.get_by_label("Seed", exact=True).fill("x")
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.get_by_role("alert").get_by_text("seed: x is no seed").wait_for()
    assert opened.page.evaluate("document.activeElement.id") == "seed"
    assert opened.page.locator("#seed[aria-invalid=true]").count() == 1
    opened.fill(prompt="a red ring")
    opened.page.locator("#steps").evaluate("slider => { slider.max = 1000 }")
    opened.page.get_by_label("Steps", exact=True).fill("1000")
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.get_by_role("alert").get_by_text("steps: ").wait_for()
    assert opened.page.locator("#steps[aria-invalid=true]").count() == 1
    assert opened.problems.pop().startswith(
        "Failed to load resource: the server responded with a status of 422"
    )


def test_limits_of_a_document_are_set_by_keyboard_and_sent(opened: Visit) -> None:
    sent: list[dict[str, Any]] = []
    opened.page.on("request", lambda r: sent.append(r.post_data_json) if r.method == "POST" else None)
    assert not opened.page.get_by_label("Most images").is_visible()
    opened.page.get_by_label("Seed", exact=True).focus()
    for key in ("Tab", "Enter", "Tab"):
        opened.page.keyboard.press(key)
    for digits in ("1", "12"):
        opened.page.keyboard.type(digits)
        opened.page.keyboard.press("Tab")
    opened.generate(prompt=STORY, target="a document of both", steps=24)
    assert (sent[0]["max_images"], sent[0]["max_tokens"]) == (1, 12)
    assert opened.page.locator(".picture").count() <= 1
    assert 0 < opened.page.locator(".token").count() <= 12
    opened.page.get_by_label("Most images").fill("")
    opened.page.get_by_label("Most tokens").fill("3000")
    opened.page.get_by_text("Advanced").press("Enter")
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.get_by_role("alert").get_by_text("give a whole number from 1 to 2048").wait_for()
    assert opened.page.evaluate("document.activeElement.id") == "max_tokens" and len(sent) == 1
    opened.page.get_by_label("Most tokens").fill("")
    opened.generate(prompt="a red ring", steps=2)
    assert not {"max_images", "max_tokens"} & sent[1].keys()


@pytest.mark.parametrize("end", ["Home", "End"])
def test_the_ends_of_all_sliders_are_taken(opened: Visit, end: str) -> None:
    opened.page.get_by_label("Prompt").fill("a red ring")
    for name in ("Steps", "Guidance", "Temperature"):
        opened.page.get_by_label(name, exact=True).press(end)
    opened.page.get_by_role("button", name="Generate").click()
    opened.page.locator(".picture img[src]").wait_for()
    opened.page.keyboard.press("Escape")
    opened.page.get_by_role("button", name="Generate").wait_for()
    assert opened.page.get_by_role("alert").inner_text() == ""


def test_the_download_replays_alone(opened: Visit, browser: Browser, tmp_path: Path) -> None:
    opened.generate(prompt="</script><b>A large red circle</b>", target="a document of both", steps=16)
    for button, name in (("download the page", "kept.html"), ("download the events", "kept.json")):
        with opened.page.expect_download() as download:
            opened.page.get_by_role("button", name=button).click()
        download.value.save_as(tmp_path / name)
    events = json.loads((tmp_path / "kept.json").read_text())
    assert events["events"][-1]["event"] == "done" and events["request"]["seed"] == 3
    context = browser.new_context(offline=True)
    kept = visit(context, f"file://{tmp_path}/kept.html")
    kept.page.locator(".token").first.wait_for()
    assert (kept.text, kept.page.locator(".picture").count()) == (
        opened.text,
        opened.page.locator(".picture").count(),
    )
    assert np.array_equal(kept.image(), opened.image())
    assert kept.seek("Home") == 0
    assert not kept.problems
    context.close()


def test_a_narrow_window_needs_no_sideways_scrolling(browser: Browser, url: str) -> None:
    context = browser.new_context(
        viewport={"width": 320, "height": 640}, reduced_motion="reduce", extra_http_headers=HEADERS
    )
    seen = visit(context, url)
    seen.generate(prompt=STORY, target="a document of both", steps=8)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 320
    assert seen.page.locator(".paper").evaluate("p => p.getBoundingClientRect().top < innerHeight")
    assert seen.page.locator(".token.new").count() == 0
    seen.seek("ArrowLeft")
    animations = seen.page.evaluate("document.getAnimations().length")
    context.close()
    assert animations == 0
    assert not seen.problems
