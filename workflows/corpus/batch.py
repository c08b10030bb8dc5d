"""Batches found by trial: as many images in one pass as are quick and have room, for a model, frame and device.

The last bits of a latent may depend on the batch, so a batch is found once and kept beside what is stored; every
later run, and every other machine with such a device, takes it from there.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.corpus.chunks import part_images
from workflows.corpus.cluster import Environment
from workflows.corpus.config import CorpusConfig
from workflows.corpus.encoded import Store
from workflows.corpus.encoder import device_of, free_memory, out_of_memory
from workflows.corpus.frames import Frame, Size
from workflows.corpus.models import load_models
from workflows.errors import OneFlowError
from workflows.memory import forget_peak, peak_resident
from workflows.storage import exists, explained, join, open_fs, read_json, write_json

ENOUGH = 0.95
"""The smallest batch with this share of the best rate is taken."""
MEMORY_SHARE = 0.5, 0.8
"""Of a machine's memory for all its encoders, and of a GPU's for those on it."""


@dataclass(frozen=True, slots=True)
class Found:
    """The batch, and by batch what was tried: images per second, and bytes at the height."""

    images: int
    rates: Mapping[int, float]
    memory: Mapping[int, int]


def found_batches(config: CorpusConfig, stores: list[Store], limit: int) -> dict[str, int]:
    """Images in one pass, by kind; each is found now where that was not done before. Runs where an encoder would.

    `limit` is the memory that a pass may take on a CPU, in bytes.
    """
    size = Frame.of(config.encode).sizes[0]
    return {store.kind: _kept(config, store, size, limit) for store in stores if store.model is not None}


def batch_url(folder: str, device: str) -> str:
    """Where the batch for what is stored in `folder` is kept."""
    return join(folder, f"batch-{device}.json")


def batch_urls(config: CorpusConfig, stores: Sequence[Store]) -> tuple[str, ...]:
    """Where batches that were found for these stores are kept, for any device; none where none was to be found."""
    if config.encode.batch_size != "auto":
        return ()
    return tuple(url for store in stores if store.model is not None for url in _batch_files(store.folder))


def trial(model: Any, size: Size, limit: int, most: int, device: str = "cpu") -> Found:
    """Doubles the batch until memory (at most `limit` bytes), the gain, or `most` images end it.

    Raises:
        OneFlowError: there is no room for one image.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, size[1], size[0], 3), np.uint8)
    held = _held(device)
    rates: dict[int, float] = {}
    memory: dict[int, int] = {}
    images = 1
    while images <= most:
        try:
            seconds = _seconds(model, image.repeat(images, axis=0))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            free_memory()
            break
        memory[images] = _height(device) - held
        if memory[images] > limit and images > 1:
            break
        rates[images] = images / seconds
        if rates[images] < max(rates.values()) and images >= 4 * max(rates, key=lambda n: rates[n]):
            break
        images *= 2
    if not rates:
        what = f"an image of {size[0]}x{size[1]} pixels"
        raise OneFlowError(what, "its encoding does not fit into memory", "lower encode.image_size")
    best = max(rates.values())
    return Found(min(n for n, rate in rates.items() if rate >= ENOUGH * best), rates, memory)


def find(config: CorpusConfig, stores: list[Store], environment: Environment, limit: int) -> dict[str, int]:
    """`found_batches` as a task."""
    environment.apply()
    return found_batches(config, stores, limit)


def _batch_files(folder: str) -> list[str]:
    filesystem, path = open_fs(folder)
    with explained(folder):
        names = [entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False)]
    return [join(folder, name) for name in sorted(names) if name.startswith("batch-")]


def _kept(config: CorpusConfig, store: Store, size: Size, limit: int) -> int:
    url = batch_url(store.folder, _device_name(config))
    if not exists(url):
        pair = (config.encode.codec, config.encode.understanding)
        model = load_models(pair, device_of(config), config.encode.dtype)[store.kind]
        most = part_images(config.encode, size)
        found = trial(model, size, _limit(config, limit), most, device_of(config))
        write_json(url, asdict(found), if_absent=True)
    return int(read_json(url)["images"])


def _limit(config: CorpusConfig, limit: int) -> int:
    if config.encode.batch_gb is not None:
        return int(config.encode.batch_gb * 1e9)
    if not config.encode.gpus_per_actor:
        return limit
    import torch

    total = torch.cuda.get_device_properties().total_memory
    return int(MEMORY_SHARE[1] * min(1.0, config.encode.gpus_per_actor) * total)


def _device_name(config: CorpusConfig) -> str:
    if not config.encode.gpus_per_actor:
        return "cpu"
    import torch

    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def _seconds(model: Any, pixels: NDArray[np.uint8]) -> float:
    """Of a pass, the better of two; the first warms up."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        model.encode(pixels, len(pixels))
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def _held(device: str) -> int:
    """Bytes before the trial that are none of its own; heights before it are forgotten."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return 0
    forget_peak()
    return peak_resident()


def _height(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved())
    return peak_resident()
