"""Writing an embedded encoder: float16 safetensors, its recipe and its report, all there or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def replace_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Has `fill` write a new directory beside `directory`, then puts it in its place; on an error nothing changes."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fill(fresh)
        fresh.chmod(0o755)
        if directory.exists():
            retired = fresh.with_name(fresh.name + "-old")
            os.rename(directory, retired)
            os.rename(fresh, directory)
            shutil.rmtree(retired)
        else:
            os.rename(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")
