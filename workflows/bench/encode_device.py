"""What encoding reaches on a device, without Ray: the encoders by themselves, and as the job's actor works with them.

Codec and understanding encoder have the sizes of Stable Diffusion 3's and of SigLIP 2 so400m, with random weights:
what they cost is what matters here. Each is tried batch by batch as the job does (`encode.batch_size: auto`). Then the
job's own encoder takes chunks, which processes decode from JPEG, through both networks and stores the parts on a local
disk, beside a bare loop over the same networks with the same batches and its pixels in memory.
"""

import io
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.bench.flops import flop_counter
from workflows.bench.mfu import DATA_SHEET
from workflows.bench.result import Result
from workflows.corpus.batch import Found, trial
from workflows.corpus.config import CorpusConfig
from workflows.corpus.frames import Frame

NO_LIMIT = 1 << 62
"""Of memory: the device tells when there is no more."""
AHEAD = 3
"""Chunks that are decoded before they are needed."""


@dataclass(frozen=True)
class Size:
    """What is encoded; the defaults are what a corpus for a model of 256 pixels takes."""

    side: int = 256
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Of the codec's blocks: SD3's."""
    vision: tuple[int, int, int, int] = (1152, 4304, 27, 16)
    """Width, hidden width, layers and heads of the understanding encoder: SigLIP 2 so400m's."""
    chunk: int = 256
    """Images of a part."""
    chunks: int = 6
    most: int = 128
    """Largest batch that is tried."""
    pictures: int = 64
    """Distinct JPEGs, of 512 by 384 pixels."""
    dtype: str = "bfloat16"


CPU = Size(64, (32, 64), (64, 128, 2, 4), chunk=16, chunks=4, most=16, pictures=8, dtype="float32")


def run(runs: int, device: str = "cpu", size: Size | None = None) -> Result:
    """`ratio`: images per second of the job's encoder beside the bare loop; `share_of_peak` by kind, of the device's
    rate for dense bf16 products."""
    size = size or (CPU if device == "cpu" else Size())
    folder = Path(tempfile.mkdtemp(prefix="oneflow-bench-encode-"))
    try:
        config = _config(folder, size, device)
        models = _models(config)
        _say("models are there")
        found = {}
        for kind, model in models.items():
            found[kind] = trial(model, (size.side, size.side), NO_LIMIT, size.most, device)
            _say(f"{kind}: images per second by batch {dict(found[kind].rates)}")
        batches = {kind: told.images for kind, told in found.items()}
        flops = {kind: _flops(model, size.side) for kind, model in models.items()}
        ours, peer = [], []
        with ProcessPoolExecutor(_processes(), mp_context=get_context("spawn")) as pool:
            encoder = _encoder(config, size, batches)
            list(_job(pool, encoder, size, 1))
            _say("decoders are there")
            for _ in range(runs):
                peer.append(_loop(models, batches, size))
                begun = time.perf_counter()
                images = sum(_job(pool, encoder, size, size.chunks))
                ours.append(images / (time.perf_counter() - begun))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Result(
        "encode-device",
        "images/s",
        ours,
        peer,
        ("torch", "diffusers", "transformers"),
        _told(found, flops, device),
    )


def _say(line: str) -> None:
    print(f"encode-device: {line}", file=sys.stderr, flush=True)


def _told(found: dict[str, Found], flops: dict[str, float], device: str) -> dict[str, Any]:
    name = _name(device)
    sheet = next((rate for known, rate in DATA_SHEET.items() if known in name), None)
    best = {kind: max(told.rates.values()) for kind, told in found.items()}
    return {
        "device": name,
        "batch": {kind: told.images for kind, told in found.items()},
        "images_per_s": best,
        "gflop_per_image": {kind: count / 1e9 for kind, count in flops.items()},
        "share_of_peak": {kind: best[kind] * flops[kind] / sheet for kind in best} if sheet else None,
        "rates": {kind: {str(n): rate for n, rate in told.rates.items()} for kind, told in found.items()},
        "memory_gib": {kind: max(told.memory.values()) / 2**30 for kind, told in found.items()},
        "decoders": _processes(),
    }


def _config(folder: Path, size: Size, device: str) -> CorpusConfig:
    from workflows.bench.rebuild import codec_like

    _vision(folder / "vision", size)
    encode = {
        "codec": {"name": str(codec_like(folder / "codec", size.channels))},
        "understanding": {"name": str(folder / "vision")},
        "image_size": size.side,
        "dtype": size.dtype,
        "part_images": size.chunk,
        "gpus_per_actor": 0 if device == "cpu" else 1,
    }
    source = {"name": "s", "format": "webdataset", "urls": [f"{folder}/*.tar"], "licence": "CC0-1.0"}
    tree = {"name": "bench", "root": str(folder), "sources": [source], "encode": encode}
    return CorpusConfig.model_validate(tree)


def _vision(folder: Path, size: Size) -> None:
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    width, hidden, layers, heads = size.vision
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=size.side,
        patch_size=16,
    )
    SiglipVisionModel(config).save_pretrained(folder)


def _models(config: CorpusConfig) -> dict[str, Any]:
    from workflows.corpus.encoder import device_of
    from workflows.corpus.models import load_models

    pair = (config.encode.codec, config.encode.understanding)
    return load_models(pair, device_of(config), config.encode.dtype)


def _encoder(config: CorpusConfig, size: Size, batches: dict[str, int]) -> Any:
    from workflows.corpus.encoder import Encoder

    folders = {kind: f"{config.root}/{kind}/bench/{Frame.of(config.encode).name}" for kind in batches}
    return Encoder(config, folders, batches, 0)


def _job(pool: ProcessPoolExecutor, encoder: Any, size: Size, chunks: int) -> Iterator[int]:
    """Images of each chunk that is stored; the decoders keep a few chunks ahead, as those of the job do."""
    jpegs, ahead = _jpegs(size), deque[Sequence[Future[bytes]]]()
    cuts = np.array_split(np.arange(size.chunk), _processes())
    wanted = [[jpegs[i % size.pictures] for i in cut] for cut in cuts]
    for number in range(chunks):
        while len(ahead) < AHEAD:
            ahead.append([pool.submit(_decoded, own, size.side) for own in wanted])
        yield _stored(encoder, ahead.popleft(), size, number)


def _stored(encoder: Any, decoded: Sequence[Future[bytes]], size: Size, number: int) -> int:
    row = {
        "name": f"part-{number:016x}",
        "wants": "latents,features",
        "images": [f"{number:032x}{i:032x}" for i in range(size.chunk)],
        "width": size.side,
        "height": size.side,
        "pixels": b"".join(part.result() for part in decoded),
        "told": '{"refused": []}',
    }
    return int(encoder({key: [value] for key, value in row.items()})["images"][0])


def _decoded(jpegs: Sequence[bytes], side: int) -> bytes:
    from workflows.corpus.pictures import framed

    return b"".join(framed(jpeg, (side, side)).tobytes() for jpeg in jpegs)


def _loop(models: dict[str, Any], batches: dict[str, int], size: Size) -> float:
    """Images per second through both networks, pixels in memory, nothing stored."""
    pixels = np.random.default_rng(0).integers(0, 256, (size.chunk, size.side, size.side, 3), np.uint8)
    begun = time.perf_counter()
    for _ in range(size.chunks):
        for kind, model in models.items():
            model.encode(pixels, batches[kind])
    return size.chunk * size.chunks / (time.perf_counter() - begun)


def _jpegs(size: Size) -> list[bytes]:
    """Pictures that are smooth with some noise, as photographs are."""
    from PIL import Image

    rng, made = np.random.default_rng(0), []
    for _ in range(size.pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((512, 384), Image.Resampling.BICUBIC), np.float32)
        noisy: NDArray[np.float32] = smooth + rng.normal(0, 6, smooth.shape).astype(np.float32)
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


def _flops(model: Any, side: int) -> float:
    """Of one image."""
    with flop_counter() as counter:
        model.encode(np.zeros((1, side, side, 3), np.uint8), 1)
    return float(counter.get_total_flops())


def _processes() -> int:
    return max(1, (os.cpu_count() or 2) - 2)


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device != "cpu" else "cpu"
