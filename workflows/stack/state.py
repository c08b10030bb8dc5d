"""The state directory: what runs, on which ports, with which credentials. Files that hold secrets have mode 600."""

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from workflows.errors import OneFlowError
from workflows.stack.process import Record

LOCK_TIMEOUT_S = 600.0


class Credentials(BaseModel):
    """Keys of the S3 server and the token of Ray, made once for a state directory."""

    access_key: str
    secret_key: str
    ray_token: str


class State(BaseModel):
    """What `up` did last. A record may name a process that ended since."""

    ports: dict[str, int] = {}
    services: dict[str, Record] = {}
    buckets: list[str] = []


def default_directory() -> Path:
    """`$ONEFLOW_HOME/stack`, or `.oneflow/stack` in the working directory."""
    home = os.environ.get("ONEFLOW_HOME")
    return Path(home or ".oneflow").absolute() / "stack"


class StateDirectory:
    """Reads and writes one state directory; every write is whole or not there."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(path).absolute() if path else default_directory()

    @property
    def id(self) -> str:
        """Short name of this directory, for what must live outside of it."""
        return hashlib.sha256(f"{os.getuid()}:{self.path}".encode()).hexdigest()[:8]

    @property
    def run_directory(self) -> Path:
        """Where sockets lie: a path of at most 107 bytes is all that a socket may have."""
        return Path(tempfile.gettempdir()) / f"oneflow-{self.id}"

    def log(self, service: str) -> Path:
        """Log file of a service."""
        return self.path / "logs" / f"{service}.log"

    def prepare(self, min_free_mb: int) -> None:
        """Make the directories; OneFlowError where they cannot be made or the disk is nearly full."""
        try:
            for directory in (self.path, self.path / "logs", self.path / "s3", self.run_directory):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            free_mb = shutil.disk_usage(self.path).free >> 20
        except OSError as error:
            raise OneFlowError(
                f"state directory {self.path}", error.strerror or str(error), "name another with --state-dir"
            ) from error
        if free_mb < min_free_mb:
            raise OneFlowError(
                f"state directory {self.path}",
                f"{free_mb} MiB are free on its disk, {min_free_mb} are needed",
                "free some space, or name another disk with --state-dir",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory against other `up` and `down`; waits for them."""
        with (self.path / "lock").open("w") as handle:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while not _try_lock(handle.fileno()):
                if time.monotonic() > deadline:
                    raise OneFlowError(
                        f"stack {self.path}", "another up or down holds it", "wait for it to end"
                    )
                time.sleep(0.1)
            yield

    def load(self) -> State:
        """What was written last; empty where nothing was."""
        path = self.path / "stack.json"
        if not path.exists():
            return State()
        try:
            return State.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise OneFlowError(str(path), "not a state file of this version", "remove it") from error

    def save(self, state: State) -> None:
        """Replace the state file."""
        self.write_private("stack.json", state.model_dump_json(indent=2))

    def credentials(self) -> Credentials:
        """The keys, made at the first call."""
        path = self.path / "credentials.json"
        if not path.exists():
            made = Credentials(
                access_key=f"oneflow{secrets.token_hex(6)}",
                secret_key=secrets.token_hex(20),
                ray_token=secrets.token_hex(32),
            )
            self.write_private(path.name, made.model_dump_json(indent=2))
        return Credentials.model_validate_json(path.read_bytes())

    def write_private(self, name: str, text: str) -> None:
        """Write `name` with mode 600 from its first byte on."""
        temporary = self.path / f".{name}.{os.getpid()}"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(text)
        temporary.replace(self.path / name)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
