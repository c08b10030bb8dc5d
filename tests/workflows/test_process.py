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
def steps(count):
    for _ in range(count):
        held = [torch.ones(3 << 20) for _ in range(4)]
        del held
steps(3)
counts = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(21):
    steps(1)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(sorted(after - before for before, after in pairwise(counts))[10])
"""


def faults(device: str) -> int:
    """Of a step, the median: a heap that moved once, as something else was put at its end, is none of the matter."""
    told = subprocess.run([sys.executable, "-c", COUNT, device], capture_output=True, text=True, check=True)
    return int(told.stdout)


def test_freed_memory_is_kept_on_the_cpu_alone() -> None:
    """48 MiB a step are 12,288 pages, or a few huge ones where the system has such."""
    asked, unasked = faults("cpu"), faults("cuda")
    assert asked < 2 and unasked > 10
