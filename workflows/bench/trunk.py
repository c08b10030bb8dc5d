"""The trunk of a pipeline on a CPU beside the same trunk with torch's own products: passes of texts that grow.

Both infer in float32 on one thread, take turns pass by pass, and say the same. In each pass every document is up to
two tokens longer than in the one before, as texts are that grow; so what oneDNN spends on shapes that it has not seen
is in the figures. `by_size` has a network of the embedded model's dimensions, one of the 1B's width, and one document
at a time; `share` is the trunk's arithmetic by the rate that a large product reaches in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneflow_core.model import PRESETS, AttentionPlan, ModelConfig, OneFlowModel
from oneflow_core.model.onednn import lay_out
from workflows.bench.flops import flop_counter
from workflows.bench.result import Result
from workflows.device_rate import product_rate
from workflows.errors import OneFlowError

TOLERANCE = 1e-3
"""Largest difference of the two sides, by the largest value."""
MATRIX = 1024


@dataclass(frozen=True)
class Size:
    """A network, and how many documents share a pass."""

    model: ModelConfig
    documents: int
    passes: int
    longest: int = 64
    """Tokens of a document at the end, at most."""


NANO = PRESETS["nano"]
SIZES = {
    "nano, 16 documents": Size(NANO, 16, 24),
    "nano, 1 document": Size(NANO, 1, 24),
    "1b's width, 16 documents": Size(replace(PRESETS["1b"], layers=1, vocab_size=2048), 16, 6),
    "1b's width, 1 document": Size(replace(PRESETS["1b"], layers=1, vocab_size=2048), 1, 12),
}


def run(runs: int) -> Result:
    """Tokens a second of 16 documents on the nano network; the others in `by_size`."""
    return measure(runs, SIZES)


def measure(runs: int, sizes: dict[str, Size]) -> Result:
    """Every size `runs` times; the first is `ours` and `peer`.

    Raises:
        OneFlowError: the two sides differ by more than `TOLERANCE`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {name: _side_by_side(runs, size) for name, size in sizes.items()}
    finally:
        torch.set_num_threads(threads)
    (ours, peer, _), *_ = found.values()
    by_size: dict[str, Any] = {}
    others: dict[str, list[float]] = {}
    for name, (mine, theirs, shares) in found.items():
        by_size[name] = {"ratio": median(mine) / median(theirs), "tokens_per_s": median(mine), **shares}
        others |= {f"{name}, ours": mine, f"{name}, peer": theirs}
    return Result("trunk", "tokens/s", ours, peer, ("torch", "numpy"), {"by_size": by_size}, others)


def _side_by_side(runs: int, size: Size) -> tuple[list[float], list[float], dict[str, float]]:
    torch.manual_seed(0)
    plain = OneFlowModel(size.model).eval()
    model = OneFlowModel(size.model).eval()
    model.load_state_dict(plain.state_dict())
    lay_out(model)
    ours, peer = list[float](), list[float]()
    with torch.inference_mode():
        for seed in range(runs):
            passes = list(_passes(size, seed))
            tokens = sum(len(x_TD) for x_TD, *_ in passes)
            seconds = {"ours": 0.0, "peer": 0.0}
            for number, given in enumerate(passes):
                said = dict[str, Tensor]()
                sides = [("ours", model), ("peer", plain)]
                for name, side in sides if number % 2 else sides[::-1]:
                    begun = time.perf_counter()
                    said[name] = side.backbone(*given)
                    seconds[name] += time.perf_counter() - begun
                _demand_alike(said["ours"], said["peer"])
            ours.append(tokens / seconds["ours"])
            peer.append(tokens / seconds["peer"])
        with flop_counter() as counter:
            for given in passes:
                plain.backbone(*given)
        needed, rate = counter.get_total_flops(), product_rate(MATRIX, torch.float32, "cpu")
    shares = {
        name: needed / tokens * median(done) / rate for name, done in (("share", ours), ("peer_share", peer))
    }
    return ours, peer, shares | {"product_gflops": rate / 1e9}


def _passes(size: Size, seed: int) -> Iterator[tuple[Tensor, Tensor, AttentionPlan]]:
    """Hidden states, places and attention of each pass."""
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(1, size.longest - 2 * size.passes + 2, size.documents)
    for _ in range(size.passes):
        lengths_B = lengths_B + rng.integers(0, 3, size.documents)
        total = int(lengths_B.sum())
        x_TD = torch.from_numpy(rng.standard_normal((total, size.model.width), np.float32))
        position_T = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths_B]))
        yield x_TD, position_T, AttentionPlan.build(lengths_B)


def _demand_alike(ours_TD: Tensor, peer_TD: Tensor) -> None:
    apart = float((ours_TD - peer_TD).abs().max() / peer_TD.abs().max())
    if not apart <= TOLERANCE:
        cause = f"the two sides differ by {apart:.1e}, more than {TOLERANCE}"
        raise OneFlowError("benchmark trunk", cause, "mend oneflow_core.model.onednn")
