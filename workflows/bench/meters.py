"""What a stretch of work costs: seconds and peak memory, on the CPU or a GPU."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    peak = torch.cuda.max_memory_allocated(device) if gpu else _peak_resident()
    found.peak_mib = (peak - before) / 2**20


def _begin(device: str) -> int:
    """Forgets earlier peaks; bytes held now."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    if CLEAR.exists():
        CLEAR.write_text("5")
    return _peak_resident()


def _peak_resident() -> int:
    """Bytes. A process's own rusage begins with its parent's peak on Linux, so /proc is asked where there is one."""
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
