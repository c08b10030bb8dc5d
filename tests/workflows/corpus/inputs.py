"""Inputs as users have them, written for a test."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workflows.corpus.config import CorpusConfig


def png(seed: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BICUBIC).convert(mode)
    return encoded(image, "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = stream.getvalue()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix in {".gz", ".tgz"} else data)
    return path


def pairs(start: int, count: int) -> list[tuple[str, bytes]]:
    """Members of captioned pictures, each different."""
    return [
        member
        for i in range(start, start + count)
        for member in ((f"{i:05d}.png", png(i)), (f"{i:05d}.txt", f"picture {i}".encode()))
    ]


def jsonl(path: Path, rows: Sequence[Mapping[str, Any] | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def corpus(root: Path | str, *sources: Mapping[str, Any], **rest: Any) -> CorpusConfig:
    """A config with one `captions` source in <root>/raw, unless others are named."""
    named = sources or ({"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"]},)
    filled = [{"licence": "CC0-1.0", **source} for source in named]
    return CorpusConfig.model_validate({"name": "test", "root": str(root), "sources": filled, **rest})
