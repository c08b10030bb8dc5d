"""How much of a machine's arithmetic a training step of a preset uses, on packed text-image pairs.

FLOPs of a step are those that the method needs (`oneflow_core.flops`). `mfu` is that by the time and by the rate of the
data sheet, where the device is known; `ratio` is by the rate that a large matrix product reaches in the same run.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from oneflow_core.flops import NeededFlops
from oneflow_core.model import PRESETS, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Pack
from workflows.bench.random_documents import Ids, packed_pairs
from workflows.bench.result import Result
from workflows.device_rate import device_name, product_rate, sheet_rate, timed


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
    packs = [
        packed_pairs(objective, size.tokens, size.caption, size.side, seed).to(device)
        for seed in range(runs + 2)
    ]
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
    sheet = sheet_rate(device_name(device))
    extra = {
        "variant": best,
        "tokens_per_s": {n: median(f["tokens_per_s"]) for n, f in found.items()},
        "step_s": {n: median(f["seconds"]) for n, f in found.items()},
        "memory_gib": {n: f["memory_gib"] for n, f in found.items()},
        "mfu": median(rates) / sheet if sheet else None,
        "device": device_name(device),
        "preset": size.preset,
        "dtype": str(dtype),
    }
    return Result("mfu", "FLOP/s", rates, peak, ("torch",), extra)


def _rates(
    model: OneFlowModel, objective: OneFlowObjective, packs: list[Pack], device: str
) -> dict[str, Any]:
    """FLOP/s and tokens per second of each step after two to warm up, and the most memory."""
    optimiser, needed = torch.optim.AdamW(model.parameters(), 1e-4, fused=True), NeededFlops.of(model)
    seconds = []
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for pack in packs:

        def step(pack: Pack = pack) -> None:
            optimiser.zero_grad()
            objective.loss(model, pack, objective.normalisers(pack)).total.backward()
            optimiser.step()

        seconds.append(timed(step, device))
    told = list(zip(packs[2:], seconds[2:], strict=True))
    return {
        "rates": [needed.of_pack(pack) / s for pack, s in told],
        "tokens_per_s": [pack.tokens / s for pack, s in told],
        "seconds": [s for _, s in told],
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else None,
    }
