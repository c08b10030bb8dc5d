"""What a stretch of work costs: seconds and peak memory, on the CPU or a GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from workflows.memory import forget_peak, peak_resident


@dataclass
class Cost:
    """Filled in when the stretch ends."""

    seconds: float = 0.0
    """CPU time of all threads; on a GPU, wall time until it has done all."""
    peak_mib: float = 0.0
    """Memory at its height above what was held before: resident, or allocated on the GPU."""


@contextmanager
def cost(device: str) -> Iterator[Cost]:
    """Measures what is done within."""
    found, gpu = Cost(), device.startswith("cuda")
    before = _begin(device)
    begun = time.perf_counter() if gpu else time.process_time()
    yield found
    if gpu:
        torch.cuda.synchronize(device)
    found.seconds = (time.perf_counter() if gpu else time.process_time()) - begun
    peak = torch.cuda.max_memory_allocated(device) if gpu else peak_resident()
    found.peak_mib = (peak - before) / 2**20


def _begin(device: str) -> int:
    """Forgets earlier peaks; bytes held now."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    forget_peak()
    return peak_resident()
