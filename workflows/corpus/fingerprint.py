"""What a model's files are, without loading it: quick enough to see that nothing is to be done."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def subfolder(self) -> str | None: ...


def fingerprint(model: _Named | None, asset: str) -> str | None:
    """Digest of the files of a local or embedded model; the name where the files are not at hand (a hub's).

    `asset` is where the embedded one lies. None for no model.
    """
    if model is None:
        return None
    directory = _assets() / asset if model.name == "embedded" else Path(model.name, model.subfolder or "")
    if not directory.is_dir():
        return f"{model.name}/{model.subfolder or ''}"
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.suffix in {".json", ".safetensors", ".bin"}):
        digest.update(f"{path.relative_to(directory)}:{path.stat().st_size}:".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _assets() -> Path:
    spec = find_spec("oneflow_core")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "assets"
