"""A served page as somebody in front of a browser sees it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.workflows.serving.conftest import pixels

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 180_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser without a window; a test that asks for it is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium, as .ci/run does")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """An opened page, and what went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def generate(self, **filled: Any) -> None:
        """Fills in the form and waits for the end."""
        self.fill(**filled)
        self.page.get_by_role("button", name="Generate").click()
        self.done()

    def fill(
        self, prompt: str = "", target: str = "an image", seed: int = 3, steps: int | None = None
    ) -> None:
        self.page.get_by_label("Prompt").fill(prompt)
        self.page.get_by_role("radio", name=target, exact=True).check(force=True)
        self.page.get_by_label("Seed", exact=True).fill(str(seed))
        if steps:
            self.page.get_by_label("Steps", exact=True).fill(str(steps))

    def done(self) -> None:
        self.page.get_by_text("Done in").wait_for()
        # The last moment is drawn in the frame after these words.
        self.page.evaluate("new Promise(requestAnimationFrame)")

    @property
    def text(self) -> str:
        return "".join(self.page.locator(".token").all_text_contents())

    def seek(self, key: str) -> int:
        """Presses a key on the scrubber; how many tokens there are then."""
        self.page.locator(".scrubber").press(key)
        return self.page.locator(".token").count()

    def image(self) -> np.ndarray:
        source = str(self.page.locator(".picture img").first.get_attribute("src"))
        return pixels(source.partition(",")[2])


def visit(context: BrowserContext, url: str) -> Visit:
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    seen = Visit(page)
    page.on("console", lambda m: seen.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on(
        "request",
        lambda r: seen.problems.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None,
    )
    page.goto(url)
    return seen
