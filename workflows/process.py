"""What a process asks of its interpreter and of its allocator, so that the thread of the network is not held up.

Measured by oneflow bench train-loop; see docs/benchmarks.md.
"""

import ctypes
import sys
from contextlib import suppress

SWITCH_S = 0.0005
"""The network's thread lets go of the interpreter at every operator and wants it back at once; with Python's 5 ms it
waits that long whenever another thread is at work."""
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
LARGEST = 2**31 - 1


def settle(device: str) -> None:
    """Hand the interpreter over sooner; on the CPU keep freed memory, which the next step takes again.

    glibc gives buffers of megabytes back to the system at once, and every page of the next ones is a fault. Elsewhere
    (other C libraries, a GPU with an allocator of its own) nothing is asked.
    """
    sys.setswitchinterval(SWITCH_S)
    if device == "cpu":
        with suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None)
            libc.mallopt(MMAP_THRESHOLD, 2**30)
            libc.mallopt(TRIM_THRESHOLD, LARGEST)
