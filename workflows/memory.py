"""Memory of this process at its height."""

import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Let the height be what is held now, where the system can (Linux)."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak_resident() -> int:
    """Bytes. A process's own rusage begins with its parent's peak on Linux, so /proc is asked where there is one."""
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
