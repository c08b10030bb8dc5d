"""How much of a machine's arithmetic a training step of a preset uses, on packed text-image pairs.

FLOPs of a step: 6 for each parameter and token that it takes (blocks: all tokens; image adapters: patches; vocabulary
head: gaps that miss something), and 12 x layers x width x n^2 for a document of n tokens: what the method needs,
whatever is recomputed or padded. `mfu` is that by the time and by the rate of the data sheet, where the device is
known; `ratio` is by the rate that a large matrix product reaches in the same run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from oneflow_core.model import PRESETS, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Pack, collate
from workflows.bench.random_documents import Ids, image, sample, text
from workflows.bench.result import Result

DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of devices by a part of their names."""


@dataclass(frozen=True)
class Size:
    """What is trained; the defaults are the paper's 1B on pairs of 256 pixels."""

    preset: str = "1b"
    tokens: int = 16_384
    """Tokens of clean documents in a pack."""
    caption: int = 128
    side: int = 32
    matrix: int = 8192
    """Side of the matrices whose product is the yardstick."""


CPU = Size("nano", tokens=4096, side=8, caption=64, matrix=1024)


def run(runs: int, device: str = "cpu", size: Size | None = None) -> Result:
    """FLOP/s of whole steps, the optimiser included: plain, and with compiled blocks on a GPU; the best is `ours`."""
    size = size or (CPU if device == "cpu" else Size())
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    dims = PRESETS[size.preset]
    config = ObjectiveConfig(mixture=TaskMixture(concurrent=1.0, prompt_dropout=0.0))
    objective = OneFlowObjective(config, dims, Ids(dims.vocab_size))  # type: ignore[arg-type]
    packs = [_pack(objective, size, seed).to(device) for seed in range(runs + 2)]
    found = {}
    for name in ("plain", "compiled") if device != "cpu" else ("plain",):
        torch.manual_seed(0)
        model = OneFlowModel(dims).to(device=device, dtype=dtype)
        if name == "compiled":
            for block in model.backbone.children_blocks():
                block.compile(dynamic=True)
        found[name] = _rates(model, objective, packs, device)
        del model
    best = min(found, key=lambda name: median(found[name]["seconds"]))
    peak = [product_rate(size.matrix, dtype, device) for _ in range(runs)]
    rates = found[best]["rates"]
    sheet = next((rate for name, rate in DATA_SHEET.items() if name in _name(device)), None)
    extra = {
        "variant": best,
        "tokens_per_s": {n: median(f["tokens_per_s"]) for n, f in found.items()},
        "step_s": {n: median(f["seconds"]) for n, f in found.items()},
        "memory_gib": {n: f["memory_gib"] for n, f in found.items()},
        "mfu": median(rates) / sheet if sheet else None,
        "device": _name(device),
        "preset": size.preset,
        "dtype": str(dtype),
    }
    return Result("mfu", "FLOP/s", rates, peak, ("torch",), extra)


def needed_flops(model: OneFlowModel, pack: Pack) -> float:
    """FLOPs of forward and backward that the method needs; see the module."""
    config, inputs = model.config, pack.inputs
    trunk = sum(p.numel() for p in model.backbone.parameters())
    image = sum(p.numel() for part in (model.patches, model.image_head) for p in part.parameters())
    head = model.heads.tokens.weight.numel()
    lengths = inputs.attention.document_T.bincount().double()
    linear = trunk * pack.tokens + image * len(inputs.patch_N) + head * len(inputs.logit_slot_R)
    return 6.0 * linear + 12.0 * config.layers * config.width * float((lengths**2).sum())


def _rates(
    model: OneFlowModel, objective: OneFlowObjective, packs: list[Pack], device: str
) -> dict[str, Any]:
    """FLOP/s and tokens per second of each step after two to warm up, and the most memory."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    seconds = []
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for pack in packs:

        def step(pack: Pack = pack) -> None:
            optimiser.zero_grad()
            objective.loss(model, pack, objective.normalisers(pack)).total.backward()
            optimiser.step()

        seconds.append(_timed(step, device))
    timed = list(zip(packs[2:], seconds[2:], strict=True))
    return {
        "rates": [needed_flops(model, pack) / s for pack, s in timed],
        "tokens_per_s": [pack.tokens / s for pack, s in timed],
        "seconds": [s for _, s in timed],
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else None,
    }


def product_rate(side: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    _timed(lambda: a @ b, device)
    repeats = 10

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    return 2 * side**3 * repeats / _timed(products, device)


def _timed(act: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    act()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _pack(objective: OneFlowObjective, size: Size, seed: int) -> Pack:
    rng, dims = np.random.default_rng(seed), objective.model
    side = size.side // dims.patch
    documents = [
        sample([text(rng, size.caption, dims.vocab_size), image(size.side * 8)], rng, side=size.side)
        for _ in range(size.tokens // (size.caption + side * side))
    ]
    return collate([objective.corrupt(d, rng) for d in documents])


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else "cpu"
