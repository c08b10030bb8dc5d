"""What a model's files are, without loading it: quick enough to see that nothing is to be done."""

import hashlib
from functools import lru_cache
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
    return of_files(model, asset) or f"{model.name}/{model.subfolder or ''}"


def of_files(model: _Named, asset: str) -> str | None:
    """Digest of the files of a local or embedded model, None where they are not at hand."""
    directory = _assets() / asset if model.name == "embedded" else Path(model.name, model.subfolder or "")
    if not directory.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.suffix in {".json", ".safetensors", ".bin"}):
        told = path.stat()
        digest.update(f"{path.relative_to(directory)}:{told.st_size}:".encode())
        digest.update(_digest(path, told.st_size, told.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, mtime_ns: int) -> bytes:
    """SHA-256 of a file; its size and time are what tells that it is another one."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _assets() -> Path:
    spec = find_spec("oneflow_core")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "assets"
