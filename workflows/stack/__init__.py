"""The embedded services of one machine: S3, MLflow and Ray, on loopback, under one state directory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflows.stack.config import StackConfig
    from workflows.stack.environment import adopt, connect
    from workflows.stack.lifecycle import Status, down, status, up

__all__ = ["StackConfig", "Status", "adopt", "connect", "down", "status", "up"]

_HOMES = {
    "StackConfig": "config",
    "adopt": "environment",
    "connect": "environment",
    "Status": "lifecycle",
    "down": "lifecycle",
    "status": "lifecycle",
    "up": "lifecycle",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `oneflow --help` imports this package and has no use for what it needs.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
