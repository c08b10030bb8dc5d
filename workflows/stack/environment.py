"""The environment by which programs use a running stack, kept in a file of mode 600."""

import json
import os
import shlex
from pathlib import Path

from workflows.errors import OneFlowError
from workflows.stack.ports import LOOPBACK
from workflows.stack.services import Context, client_environment, ray_token_environment
from workflows.stack.state import StateDirectory

FILE = "environment.json"
_STORE = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3")


def write(directory: StateDirectory, context: Context) -> None:
    """Keep the environment of a stack that is up."""
    values = client_environment(context)
    if context.config.ray.enabled:
        values |= ray_token_environment(context)
        values["RAY_ADDRESS"] = f"{LOOPBACK}:{context.ports['ray']}"
        values["RAY_API_SERVER_ADDRESS"] = context.url("ray_dashboard")
    directory.write_private(FILE, json.dumps(values, indent=2))


def remove(directory: StateDirectory) -> None:
    """Forget it: the stack goes down."""
    (directory.path / FILE).unlink(missing_ok=True)


def read(state_dir: Path | None = None) -> dict[str, str]:
    """The environment of the stack at `state_dir`; empty where none is up."""
    path = StateDirectory(state_dir).path / FILE
    if not path.exists():
        return {}
    values: dict[str, str] = json.loads(path.read_bytes())
    return values


def connect(state_dir: Path | None = None) -> dict[str, str]:
    """Put the stack's environment into `os.environ`, whatever was there; OneFlowError where no stack is up."""
    values = read(state_dir)
    if not values:
        where = StateDirectory(state_dir).path
        raise OneFlowError(f"stack {where}", "it is not up", "start it with: oneflow stack up")
    os.environ.update(values)
    return values


def adopt(state_dir: Path | None = None) -> None:
    """Use a stack that is up where the environment says nothing else; what is set already stays."""
    values = read(state_dir)
    if any(name in os.environ for name in _STORE):
        values = {name: value for name, value in values.items() if not name.startswith("AWS_")}
    for name, value in values.items():
        os.environ.setdefault(name, value)


def exports(state_dir: Path | None = None) -> str:
    """Lines for `eval` in a shell; OneFlowError where no stack is up."""
    values = connect(state_dir)
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
