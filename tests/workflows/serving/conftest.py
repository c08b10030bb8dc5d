"""One Ray for all tests of this folder, on which their servers run one after the other."""

from __future__ import annotations

import base64
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from workflows.serving.proxy import PATH, VARIABLE

KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="package")
def cluster() -> Iterator[Path]:
    """A Ray of two cores; gives the directory of its session."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as scratch:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            _temp_dir=scratch,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[3]), VARIABLE: PATH}},
        )
        yield Path(scratch)
        ray.shutdown()


def meters(http: httpx2.Client) -> dict[str, float]:
    """The replica's counters by name and labels."""
    lines = http.get("/metrics").text.splitlines()
    return {name: float(v) for name, v in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}


def wait_for(true: Callable[[], Any], what: str, timeout_s: float = 180.0) -> Any:
    """Asks until the answer is true, and gives it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := true():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def picture(size: tuple[int, int] = (64, 64), colour: tuple[int, int, int] = (200, 30, 10)) -> str:
    """A PNG of one colour, in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels(data: str) -> np.ndarray:
    """A PNG in base64 as numbers."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int)
