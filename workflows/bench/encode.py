"""Images per second of the encode job beside a bare loop over the same encoder with its images in memory.

The job reads webdataset tars, decodes, encodes and writes parts, by Ray Data; the loop is a process for each encoder
of the job, each with one thread (or the GPU), over pixels that are there already. Both have the same cores. A job over
N images and one over 10N tell the rate without what starting costs; a first job warms the disk and is not counted.

Whether memory grows with the corpus is told by two more jobs, M and 4M images cut to a size at which the encoders are
slow beside the readers: without back-pressure all pixels would be held.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from workflows.bench.captioned import write_tars
from workflows.bench.child import Child
from workflows.bench.result import Result
from workflows.bench.tree_memory import watched
from workflows.corpus.cluster import cluster, cpus
from workflows.corpus.config import CorpusConfig
from workflows.device_rate import device_name, sheet_rate


@dataclass(frozen=True)
class Size:
    """What is encoded."""

    images: int = 2000
    """N; the large job has ten times as many."""
    side: int = 64
    flood: int = 500
    """M."""
    flood_side: int = 256
    codec: str = "embedded"
    subfolder: str | None = None


CUDA = Size(images=8000, side=256, flood=4000, flood_side=512)
WORKER_NICENESS = 15
"""Ray's default."""
FLOOD_PART_IMAGES = 64
"""Small parts, so that many could be held."""


def run(runs: int, device: str = "cpu", size: Size | None = None) -> Result:
    """`ratio` is without what starting costs, on both sides; `ratio_with_startup` is of the large job whole."""
    from workflows.corpus import ingest

    size = size or (CUDA if device == "cuda" else Size())
    folder = Path(tempfile.mkdtemp(prefix="oneflow-bench-encode-"))
    few, many = size.images, 10 * size.images
    jobs: dict[int, list[float]] = {few: [], many: []}
    loops, starts = [], []
    try:
        configs = {}
        with cluster():
            encoders = cpus() if device == "cpu" else 1
            for count in (few, many):
                write_tars(folder / str(count) / "raw", count)
                configs[count] = _config(folder / str(count), size, device, encoders)
                ingest.run(configs[count])
            _job(configs[few])
            for _ in range(runs):
                for count in (few, many):
                    jobs[count].append(_job(configs[count]))
                rate, start = _loop(size, device, encoders, few)
                loops.append(rate)
                starts.append(start)
            heights = [_height(folder, size, device, encoders, times) for times in (1, 4)]
        flops = _flops(size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rates = [(many - few) / (b - a) for a, b in zip(jobs[few], jobs[many], strict=True)]
    whole = [many / seconds for seconds in jobs[many]]
    bare = [many / (start + many / rate) for rate, start in zip(loops, starts, strict=True)]
    extra: dict[str, Any] = {
        "ratio_with_startup": median(whole) / median(bare),
        "images": {"few": few, "many": many},
        "seconds": {"few": median(jobs[few]), "many": median(jobs[many]), "loop_start": median(starts)},
        "memory_mib": {"few": heights[0], "many": heights[1]},
        "pixels_mib": {"few": _pixels_mib(size, 1), "many": _pixels_mib(size, 4)},
        "memory_ratio": heights[1] / heights[0],
        "gflop_per_image": flops / 1e9,
        "encoders": encoders,
        "device": device_name(device),
        "share_of_peak": _share(device, flops * median(rates)),
    }
    other = {"job_with_startup": whole, "loop_with_startup": bare}
    return Result("encode", "images/s", rates, loops, ("torch", "ray", "diffusers"), extra, other)


def _height(folder: Path, size: Size, device: str, encoders: int, times: int) -> float:
    """MiB at the height of a job over so many times M images."""
    from workflows.corpus import ingest

    root = folder / f"flood-{times}"
    write_tars(root / "raw", times * size.flood, each=size.flood)
    config = _config(root, replace(size, side=size.flood_side), device, encoders)
    encode = config.encode.model_copy(update={"part_images": FLOOD_PART_IMAGES})
    config = config.model_copy(update={"encode": encode})
    ingest.run(config)
    with watched() as height:
        _job(config)
    return height.mib


def _pixels_mib(size: Size, times: int) -> float:
    return times * size.flood * size.flood_side**2 * 3 / 2**20


def _config(root: Path, size: Size, device: str, encoders: int) -> CorpusConfig:
    source = {"name": "captions", "format": "webdataset", "urls": ["${root}/raw/*.tar"], "licence": "CC0-1.0"}
    encode = {
        "codec": {"name": size.codec, "subfolder": size.subfolder},
        "understanding": None,
        "image_size": size.side,
        "actors": encoders,
        "gpus_per_actor": 0 if device == "cpu" else 1,
    }
    tree = {"name": "bench", "root": str(root), "sources": [source], "encode": encode}
    return CorpusConfig.model_validate(tree)


def _job(config: CorpusConfig) -> float:
    """Seconds of the job from nothing stored."""
    from workflows.corpus import encode

    shutil.rmtree(Path(config.root, "latents"), ignore_errors=True)
    begun = time.perf_counter()
    report = encode.run(config)
    seconds = time.perf_counter() - begun
    assert report.encoded == report.images == _documents(config), report
    return seconds


def _documents(config: CorpusConfig) -> int:
    from workflows.corpus import ingest
    from workflows.corpus.units import list_units

    return sum(unit.account.kept for unit in ingest.reports(config, list_units(config)))


def _loop(size: Size, device: str, processes: int, images: int) -> tuple[float, float]:
    """Images per second of the bare loops together, and seconds until they can begin."""
    arguments: dict[str, Any] = {"codec": size.codec, "subfolder": size.subfolder, "device": device}
    arguments |= {"side": size.side, "images": images // processes}
    begun = time.perf_counter()
    with ExitStack() as held, ThreadPoolExecutor(processes) as pool:
        children = [held.enter_context(Child(f"{__name__}:bare_loop", arguments)) for _ in range(processes)]
        list(pool.map(lambda child: child.ask(warm=True), children))
        start = time.perf_counter() - begun
        begun = time.perf_counter()
        list(pool.map(lambda child: child.ask(), children))
        seconds = time.perf_counter() - begun
    return images // processes * processes / seconds, start


def bare_loop(
    codec: str, subfolder: str | None, device: str, side: int, images: int
) -> Callable[..., dict[str, Any]]:
    """In a process of its own: encodes its pixels, or a batch of them to warm up, and answers."""
    import torch

    from oneflow_core.encoders import LatentCodec

    torch.set_num_threads(1)
    # Ray gives way to others with its workers: beside other work, the loop is to do so too.
    os.nice(int(os.environ.get("RAY_worker_niceness", WORKER_NICENESS)))  # noqa: SIM112 (Ray's name)
    model = LatentCodec.from_pretrained(codec, subfolder=subfolder, device=device)
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
    batch = 64

    def answer(warm: bool = False) -> dict[str, Any]:
        for start in range(0, batch if warm else images, batch):
            model.encode(pixels[start : start + batch])
        return {}

    return answer


def _flops(size: Size) -> float:
    """Of one image."""
    from oneflow_core.encoders import LatentCodec
    from workflows.bench.flops import flop_counter

    model = LatentCodec.from_pretrained(size.codec, subfolder=size.subfolder)
    with flop_counter() as counter:
        model.encode(np.zeros((1, size.side, size.side, 3), np.uint8))
    return float(counter.get_total_flops())


def _share(device: str, rate: float) -> float | None:
    """Of the data sheet's bf16 rate; None where the device is not known."""
    sheet = sheet_rate(device_name(device))
    return rate / sheet if sheet else None
