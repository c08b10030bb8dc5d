"""Free ports on loopback: below the range that the kernel gives to outgoing connections."""

import random
import socket
from collections.abc import Iterable

from workflows.errors import OneFlowError

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10000
"""SeaweedFS serves gRPC at the HTTP port + 10000."""
_FIRST, _LAST = 20000, 22750
"""Above the worker ports of other Ray clusters (10002 to 19999), and + 10000 is still below 32768."""


def is_free(port: int) -> bool:
    """Whether `port` can be listened on at loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether somebody listens on `port` at loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def choose(kept: int | None, taken: Iterable[int]) -> int:
    """`kept` where it is still free, else a free port with a free port 10000 above; never one of `taken`."""
    avoid = set(taken)
    if kept is not None and kept not in avoid and _pair_is_free(kept):
        return kept
    for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
        if port not in avoid and _pair_is_free(port):
            return port
    raise OneFlowError("stack", f"no port from {_FIRST} to {_LAST} is free", "stop what listens there")


def demand(port: int, service: str, paired: bool) -> int:
    """`port`, which the config names; OneFlowError where somebody listens on it (or on + 10000 when `paired`)."""
    for wanted in (port, port + GRPC_OFFSET) if paired else (port,):
        if not is_free(wanted):
            raise OneFlowError(
                f"{service}: port {wanted}",
                f"in use by {_holder(wanted)}",
                f"stop it, or choose another with --set {service}.port=PORT, or none for a free one",
            )
    return port


def _pair_is_free(port: int) -> bool:
    return is_free(port) and is_free(port + GRPC_OFFSET)


def _holder(port: int) -> str:
    import psutil

    try:
        pids = {c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid}
        return (
            ", ".join(f"{psutil.Process(pid).name()} (pid {pid})" for pid in sorted(pids))
            or "another process"
        )
    except psutil.Error:
        return "another process"
