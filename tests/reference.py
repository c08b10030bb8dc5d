"""Real inputs and reference figures that lie beside the checkout; tests that want them skip where they are absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def shared(name: str) -> Path:
    """A file or directory of them; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def shared_json(name: str) -> Any:
    """The content of one of them."""
    return json.loads(shared(name).read_text(encoding="utf-8"))
