"""A build again with 1% of the documents changed, beside the full one, on a corpus where encoding dominates.

The codec is an AutoencoderKL in the layout of SD3's with random weights: what it costs is what matters here. Ray is up
for both. The changed documents are all of two input files, as when files are delivered anew.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from workflows.bench.captioned import write_tar, write_tars
from workflows.bench.result import Result
from workflows.corpus import build
from workflows.corpus.cluster import cluster
from workflows.corpus.config import CorpusConfig


@dataclass(frozen=True)
class Size:
    """`files` of `documents` captioned pictures of 64 pixels each, of which `changed` files change."""

    files: int = 200
    documents: int = 12
    changed: int = 2
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Of the codec's blocks: SD3's."""


def run(runs: int, size: Size | None = None) -> Result:
    """`share` is the rebuild's wall clock by the full build's."""
    size = size or Size()
    full, again, nothing = [], [], []
    reports: list[dict[str, Any]] = []
    for _ in range(runs):
        folder = Path(tempfile.mkdtemp(prefix="oneflow-bench-rebuild-"))
        try:
            config = _corpus(folder, size)
            with cluster():
                full.append(_timed(config)[0])
                for number in range(size.changed):
                    write_tar(folder / "raw" / f"{number:05d}.tar", size.documents, (1, number))
                seconds, report = _timed(config)
                again.append(seconds)
                reports.append(report)
                nothing.append(_timed(config)[0])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    last = reports[-1]
    images, changed = size.documents * size.files, size.documents * size.changed
    assert last["done"]["images"] == changed and last["reused"]["images"] == images - changed
    extra = {
        "share": median(again) / median(full),
        "documents": images,
        "changed": changed,
        "nothing_to_do_s": median(nothing),
        "stages_s": last["seconds"],
        "done": last["done"],
        "reused": last["reused"],
    }
    return Result("rebuild", "s", again, full, ("torch", "ray", "diffusers"), extra)


def _timed(config: CorpusConfig) -> tuple[float, dict[str, Any]]:
    begun = time.perf_counter()
    report = build.run(config)
    return time.perf_counter() - begun, report.to_json()


def _corpus(folder: Path, size: Size) -> CorpusConfig:
    write_tars(folder / "raw", size.files * size.documents, each=size.documents)
    codec = {"name": str(codec_like(folder / "codec", size.channels))}
    source = {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"], "licence": "CC0-1.0"}
    tree = {
        "name": "bench",
        "root": str(folder),
        "sources": [source],
        "encode": {"codec": codec, "understanding": None},
    }
    return CorpusConfig.model_validate(tree)


def codec_like(folder: Path, channels: tuple[int, ...]) -> Path:
    """A codec with random weights in the layout of SD3's, at `folder`."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder)
    return folder
