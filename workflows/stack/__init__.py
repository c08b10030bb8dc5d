"""The embedded services of one machine: S3, MLflow and Ray, on loopback, under one state directory."""

from workflows.stack.config import StackConfig
from workflows.stack.environment import adopt, connect
from workflows.stack.lifecycle import Status, down, status, up

__all__ = ["StackConfig", "Status", "adopt", "connect", "down", "status", "up"]
