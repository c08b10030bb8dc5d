"""The plan of a run against the truth: peak memory, step time and its jitter, and the share of the data sheet's rate.

Steps are those of training, of its own pieces (sharding, checkpointing, optimiser, moving average, objective) on random
text-image pairs; nothing is read and no Ray is started. Needs torch, numpy and pydantic alone:
python -c "import json; from workflows.bench.plan_check import run; print(json.dumps(run(5, 'cuda').to_json()))"
Utilisation counts the FLOPs that the method needs for the tokens that were kept, nothing that is padded or recomputed.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from oneflow_core.flops import NeededFlops
from oneflow_core.model import PRESETS, ModelConfig, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Pack
from workflows.bench.random_documents import Ids, packed_pairs
from workflows.bench.result import Result
from workflows.device_rate import device_name, sheet_rate
from workflows.training.config import ComputeSettings, OptimiserSettings
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import join_group, last_microstep, shard
from workflows.training.planning.memory import Layout, memory_of
from workflows.training.planning.packs import PackShape

LIMIT_S = 140.0
"""After which no further variant is begun."""
VARIANT_S = 90.0
"""After which a variant is given up, most of all one that compiles; sooner where the limit is near."""
TABLES = "ONEFLOW_PLAN_TABLES"
"""Variable that names a directory: torch's profile of one step of each variant goes there, by time on the device."""
WARM_STEPS = 3
"""The first compiles, the second has the moments' first use."""


@dataclass(frozen=True)
class Variant:
    """A way to train, and how many steps of it are timed for each run asked for."""

    compute: dict[str, Any]
    packs: int = 1
    steps: int = 2


VARIANTS = {
    "plain": Variant({}),
    "compiled": Variant({"compile": True}, steps=6),
    "compiled, 2 packs": Variant({"compile": True}, packs=2),
    "selective": Variant({"activation_checkpointing": "selective"}),
    "full": Variant({"activation_checkpointing": "full"}),
}


@dataclass(frozen=True)
class Size:
    """What is trained; the defaults are the paper's 1B on pairs of 256 pixels."""

    preset: str = "1b"
    dims: dict[str, Any] = field(default_factory=dict)
    tokens: int = 28_672
    """Tokens of clean documents in a pack."""
    caption: int = 128
    side: int = 32
    variants: tuple[str, ...] = tuple(VARIANTS)
    precision: str = "bf16"


CPU = Size("nano", tokens=2048, side=8, caption=64, variants=("plain", "selective", "full"), precision="fp32")


def run(runs: int, device: str = "cpu", size: Size | None = None) -> Result:
    """Planned bytes (`ours`) by measured ones (`peer`) of every variant; speeds and the rest beside them.

    On a CPU nothing measures peaks: there the bytes are those that are held between steps, parameters, moments and
    average, which must agree to the byte.
    """
    size, begun = size or (CPU if device == "cpu" else Size()), time.perf_counter()
    config = replace(PRESETS[size.preset], **size.dims)
    objective = OneFlowObjective(
        ObjectiveConfig(mixture=TaskMixture(concurrent=1.0, prompt_dropout=0.0)),
        config,
        Ids(config.vocab_size),  # type: ignore[arg-type]
    )
    packs = [packed_pairs(objective, size.tokens, size.caption, size.side, seed) for seed in range(8)]
    joined = dist.is_initialized()
    found: dict[str, dict[str, Any]] = {}
    for name in size.variants:
        if time.perf_counter() - begun > LIMIT_S - 1:
            found[name] = {"error": f"not begun after {LIMIT_S:.0f} s"}
            continue
        try:
            with _given_up_after(min(VARIANT_S, LIMIT_S - (time.perf_counter() - begun))):
                found[name] = _measured(
                    config, objective, packs, VARIANTS[name], runs, device, size.precision
                )
        except (
            Exception
        ) as error:  # What one variant cannot do on this device does not keep the others from it.
            found[name] = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
    if not joined and dist.is_initialized():
        dist.destroy_process_group()
    return _result(found, device, size)


def _result(found: dict[str, dict[str, Any]], device: str, size: Size) -> Result:
    done = {name: row for name, row in found.items() if "error" not in row}
    if not done:
        raise RuntimeError(f"no variant could be measured: {found}")
    best = min(done, key=lambda name: done[name]["seconds_per_tflop"])
    extra = {
        "variants": found,
        "fastest": best,
        "mfu": done[best]["mfu"],
        "device": device_name(device),
        "preset": size.preset,
        "precision": size.precision,
    }
    planned, measured = ([row[side] for row in done.values()] for side in ("planned_bytes", "measured_bytes"))
    return Result("plan", "bytes", planned, measured, ("torch",), extra)


def _measured(
    config: ModelConfig,
    objective: OneFlowObjective,
    packs: Sequence[Pack],
    variant: Variant,
    runs: int,
    device: str,
    precision: str,
) -> dict[str, Any]:
    """One variant: its bytes, times and rates."""
    threads = torch.get_num_threads()
    compute = ComputeSettings(
        workers=1, threads=threads, device=device, precision=precision, **variant.compute
    )
    worker, settings = join_group(compute), OptimiserSettings(warmup_steps=0)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device != "cpu" else 0
    with torch.device(worker.device):
        torch.manual_seed(0)
        model = OneFlowModel(config)
    needed, planned = (
        NeededFlops.of(model),
        memory_of(model, Layout(compute, settings, variant.packs), PackShape.of(packs)),
    )
    shard(model, compute, worker)
    optimiser = Optimiser(model, settings)
    held = sum(t.numel() * t.element_size() for t in optimiser.tensors().values())
    seconds, flops, tokens = [], [], []
    losses: list[torch.Tensor] = []
    for step in range(WARM_STEPS + runs * variant.steps):
        chosen = [packs[(step * variant.packs + n) % len(packs)] for n in range(variant.packs)]
        seconds.append(_step(model, optimiser, objective, chosen, worker.device, losses))
        flops.append(sum(needed.of_pack(pack) for pack in chosen))
        tokens.append(sum(pack.tokens for pack in chosen))
    peak = torch.cuda.max_memory_allocated() - before if device != "cpu" else held
    planned_bytes = planned.peak if device != "cpu" else sum(planned.held.values())
    told = {"planned_bytes": planned_bytes, "measured_bytes": peak, "plan_by_measured": planned_bytes / peak}
    told |= _speeds(seconds[WARM_STEPS:], flops[WARM_STEPS:], tokens[WARM_STEPS:], device)
    told |= {"first_step_s": seconds[0], "first_loss": float(losses[0]), "last_loss": float(losses[-1])}
    _write_table(lambda: _step(model, optimiser, objective, chosen, worker.device, losses), device, variant)
    if device != "cpu" and not variant.compute:
        told["first_loss_by_rectangles"] = _by_rectangles(config, objective, packs[0], compute)
    return told


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """TimeoutError where it takes longer; in the main thread."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _write_table(step: Callable[[], float], device: str, variant: Variant) -> None:
    """torch's profile of one more step, where the variable asks for it."""
    directory = os.environ.get(TABLES)
    if not directory:
        return
    name = "-".join([*(f"{k}-{v}" for k, v in variant.compute.items()), str(variant.packs)])
    with torch.profiler.profile() as profile:
        step()
    order = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    table = profile.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    (Path(directory) / f"step-{name}.txt").write_text(table)


def _step(
    model: OneFlowModel,
    optimiser: Optimiser,
    objective: OneFlowObjective,
    packs: Sequence[Pack],
    device: torch.device,
    losses: list[torch.Tensor],
) -> float:
    """Seconds of one step, from packs on the host to averaged weights."""
    _wait(device)
    begun = time.perf_counter()
    shares = [objective.normalisers(pack) for pack in packs]
    normalisers = {name: sum(share[name] for share in shares) for name in shares[0]}
    total = torch.zeros((), device=device)
    for number, pack in enumerate(packs):
        last_microstep(model, number == len(packs) - 1)
        loss = objective.loss(model, pack.to(device), normalisers).total
        loss.backward()
        total += loss.detach()
    optimiser.step(1e-4, 0.999)
    _wait(device)
    losses.append(total)
    return time.perf_counter() - begun


def _speeds(
    seconds: Sequence[float], flops: Sequence[float], tokens: Sequence[int], device: str
) -> dict[str, Any]:
    sheet = sheet_rate(device_name(device))
    rate = sum(flops) / sum(seconds)
    return {
        "mfu": rate / sheet if sheet else None,
        "tflops": rate / 1e12,
        "tokens_per_s": sum(tokens) / sum(seconds),
        "tokens_per_step": median(tokens),
        "seconds_per_tflop": 1e12 / rate,
        "step_s": {
            **{f"p{q}": float(np.percentile(seconds, q)) for q in (50, 90, 99)},
            "max": max(seconds),
        },
        "steps": len(seconds),
    }


def _by_rectangles(
    config: ModelConfig, objective: OneFlowObjective, pack: Pack, compute: ComputeSettings
) -> float:
    """The loss of the first step again, with attention by padded rectangles."""
    device = torch.device("cuda")
    with torch.device(device), torch.no_grad():
        torch.manual_seed(0)
        model = OneFlowModel(config)
    if compute.precision == "bf16":
        model.bfloat16()
    moved = pack.to(device)
    moved.inputs.attention.start_B1 = None
    with torch.no_grad():
        return float(objective.loss(model, moved, objective.normalisers(pack)).total)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)
