"""What a process asks of its allocator is granted: memory that was freed is taken again without a fault."""

from __future__ import annotations

import subprocess
import sys

COUNT = """
import resource, sys
from itertools import pairwise
import torch
from workflows.process import SWITCH_S, settle

settle(sys.argv[1])
assert abs(sys.getswitchinterval() - SWITCH_S) < 1e-6
counts = []
for _ in range(24):
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    held = torch.ones(12 << 20)
    del held
print(sorted(after - before for before, after in pairwise(counts[3:]))[10])
"""


def faults(device: str) -> int:
    """Of a step, the median: that the heap moves once, as something small came in between, says nothing."""
    told = subprocess.run([sys.executable, "-c", COUNT, device], capture_output=True, text=True, check=True)
    return int(told.stdout)


def test_freed_memory_is_kept_on_the_cpu_alone() -> None:
    """48 MiB a step, more than glibc ever keeps by itself, are 12,288 pages or some huge ones."""
    asked, unasked = faults("cpu"), faults("cuda")
    assert asked < 10 < unasked
