"""What a process asks of its allocator is granted: memory that was freed is taken again without a fault."""

from __future__ import annotations

import subprocess
import sys

COUNT = """
import resource, sys
import torch
from workflows.process import SWITCH_S, settle

settle(sys.argv[1])
assert abs(sys.getswitchinterval() - SWITCH_S) < 1e-6
def steps(count):
    for _ in range(count):
        held = [torch.ones(3 << 20) for _ in range(4)]
        del held
steps(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(device: str) -> int:
    told = subprocess.run([sys.executable, "-c", COUNT, device], capture_output=True, text=True, check=True)
    return int(told.stdout)


def test_freed_memory_is_kept_on_the_cpu_alone() -> None:
    """48 MiB a step are 12,288 pages, or a few huge ones where the system has such."""
    asked, unasked = faults("cpu"), faults("cuda")
    assert asked < 20 < unasked
