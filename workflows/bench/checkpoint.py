"""What a checkpoint costs training: seconds it is blocked, beside torch's own asynchronous save of the same state.

The state is that of AdamW over a stack of matrices, sharded by FSDP2 over this one process. Steps go on while a save is
written; on a GPU the host waits for it before and after each wait for a copy, so that what the GPU waits is counted.
"""

import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workflows.bench.result import Result
from workflows.storage import delete
from workflows.training.checkpoint import Checkpoints
from workflows.training.config import ComputeSettings, OptimiserSettings
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import Worker, join_group, shard

WARM_UP, QUIET = 3, 8
"""Steps before anything is measured, and steps without a save that tell how long one takes."""


@dataclass(frozen=True)
class Size:
    """`layers` matrices of `width`^2 values, of which the state has four each; `tokens` rows in a step."""

    width: int = 1024
    layers: int = 18
    tokens: int = 128


SIZES = {"cpu": Size(), "cuda": Size(width=4096, layers=64, tokens=16384)}
"""0.3 GB of state; and that of 1.07 billion parameters, 17 GB, of which two and a half must find room on the disk."""


class Stack(nn.Module):
    """Matrices in a row, each with its residual."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(size.width, size.width, bias=False) for _ in range(size.layers))

    def forward(self, x_TD: Tensor) -> Tensor:
        """The mean square of what comes out."""
        for block in self.blocks:
            x_TD = x_TD + block(x_TD).tanh()
        return x_TD.square().mean()


class Steps:
    """Training steps of a `Stack` that call `before_change` when they are about to change the state."""

    def __init__(self, size: Size, worker: Worker) -> None:
        torch.manual_seed(0)
        with worker.device:
            self._model = Stack(size)
            self._x_TD = torch.randn(size.tokens, size.width)
        bf16: Any = "bf16" if worker.device.type == "cuda" else "fp32"
        shard(self._model, ComputeSettings(workers=1, precision=bf16), worker)
        self.optimiser = Optimiser(self._model, OptimiserSettings(lr=1e-4))
        self._on_gpu = worker.device.type == "cuda"
        self.before_change: Callable[[], object] = lambda: None
        self.waited_s = 0.0
        """Of the last step, in `before_change`."""

    def step(self) -> float:
        """Seconds of one."""
        begun = self.now()
        self._model(self._x_TD).backward()
        changing = self.now()
        self.before_change()
        self.waited_s = self.now() - changing
        self.optimiser.step(1e-4, 0.999)
        return self.now() - begun

    def now(self) -> float:
        """The clock, once all work enqueued is done."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class Side(ABC):
    """A way to save the state of `steps` below a URL."""

    def __init__(self, steps: Steps, url: str) -> None:
        self.steps, self.url = steps, url
        self.saves = 0

    @abstractmethod
    def save(self) -> None:
        """Begin to."""

    @abstractmethod
    def staged(self) -> None:
        """Until the state may change."""

    @abstractmethod
    def saving(self) -> bool:
        """Whether it is not done."""

    @abstractmethod
    def finish(self) -> float:
        """Raise what went wrong, remove what was written; returns the seconds that it took from `save` on."""


class Ours(Side):
    """`Checkpoints`."""

    def __init__(self, steps: Steps, url: str) -> None:
        super().__init__(steps, url)
        self.checkpoints = Checkpoints(url, keep=1, max_failed=1)

    def save(self) -> None:
        """As the loop does."""
        self.saves += 1
        self.checkpoints.save(self.saves, self.steps.optimiser.tensors(), {"step": self.saves})

    def staged(self) -> None:
        """Before the optimiser's step."""
        self.checkpoints.staged()

    def saving(self) -> bool:
        """Until the commit is there."""
        return self.checkpoints.saving

    def finish(self) -> float:
        """The newest one stays until the next is there."""
        self.checkpoints.wait()
        assert self.checkpoints.last is not None
        return self.checkpoints.last.seconds


class Peer(Side):
    """torch.distributed.checkpoint.async_save, with its writer for files or, for other URLs, for fsspec."""

    def __init__(self, steps: Steps, url: str) -> None:
        super().__init__(steps, url)
        self._group = dist.new_group(backend="gloo")
        self._future: Any = None
        self._begun = self._done = 0.0

    def save(self) -> None:
        """The state is copied in the call."""
        import torch.distributed.checkpoint as dcp

        self.saves += 1
        self._begun = time.perf_counter()
        self._future = dcp.async_save(
            self.steps.optimiser.tensors(), storage_writer=self._writer(), process_group=self._group
        )
        self._future.add_done_callback(self._note)

    def staged(self) -> None:
        """It is, when `save` returns."""

    def saving(self) -> bool:
        """Until its metadata are there."""
        return not self._future.done()

    def finish(self) -> float:
        """It keeps all; so that the disk holds, none stays."""
        self._future.result()
        delete(f"{self.url}/{self.saves}", recursive=True)
        return self._done - self._begun

    def _note(self, _: Any) -> None:
        self._done = time.perf_counter()

    def _writer(self) -> Any:
        if "://" not in self.url:
            from torch.distributed.checkpoint import FileSystemWriter

            return FileSystemWriter(f"{self.url}/{self.saves}")
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(f"{self.url}/{self.saves}")


@dataclass
class Costs:
    """Seconds, a value a save."""

    blocked: list[float] = field(default_factory=list)
    """In the call that begins it, and before the state changes."""
    full: list[float] = field(default_factory=list)
    """Until it can be restored."""
    stall: list[float] = field(default_factory=list)
    """By which the steps meanwhile took longer than steps without a save, with what was blocked."""
    first_blocked: float = 0.0
    """Of the first save, which is in none of the lists."""

    def told(self, megabytes: float) -> dict[str, float]:
        """Medians."""
        blocked, full = median(self.blocked), median(self.full)
        return {
            "blocked_s": blocked,
            "full_s": full,
            "blocked_share": blocked / full,
            "mb_per_s": megabytes / full,
            "stall_s": median(self.stall),
            "first_blocked_s": self.first_blocked,
        }


def run(runs: int, device: str = "cpu", size: Size | None = None) -> Result:
    """`blocked_share`: of a save to the object store (with a GPU: to a local disk) the part that blocks training.

    On the CPU an S3 server of its own is started. `ratio` compares seconds blocked.
    """
    worker = join_group(ComputeSettings(workers=1, device=device))
    try:
        steps = Steps(size or SIZES[device], worker)
        quiet = [steps.step() for _ in range(WARM_UP + QUIET)][WARM_UP:]
        megabytes = sum(t.numel() * t.element_size() for t in steps.optimiser.tensors().values()) / 1e6
        with _places(device) as places:
            costs = {place: _compared(steps, url, runs, median(quiet)) for place, url in places.items()}
    finally:
        dist.destroy_process_group()
    told = next(iter(costs))
    extra = {
        "blocked_share": costs[told][0].told(megabytes)["blocked_share"],
        "state_mb": megabytes,
        "step_s": median(quiet),
        "places": {
            place: {"ours": ours.told(megabytes), "peer": peer.told(megabytes)}
            for place, (ours, peer) in costs.items()
        },
    }
    if device == "cuda":
        extra["gpu"] = torch.cuda.get_device_name()
    ours, peer = costs[told]
    return Result("checkpoint", "s blocked", ours.blocked, peer.blocked, ("torch",), extra)


def _compared(steps: Steps, url: str, runs: int, step_s: float) -> tuple[Costs, Costs]:
    """Ours and the peer in turn, below one URL."""
    sides, costs = (Ours(steps, f"{url}/ours"), Peer(steps, f"{url}/peer")), (Costs(), Costs())
    for number in range(runs + 1):
        for side, found in zip(sides, costs, strict=True):
            blocked, full, stall = _saved(side, step_s)
            if number == 0:
                found.first_blocked = blocked
                continue
            found.blocked.append(blocked)
            found.full.append(full)
            found.stall.append(stall)
    sides[0].checkpoints.close()
    return costs


def _saved(side: Side, step_s: float) -> tuple[float, float, float]:
    """Seconds blocked, until done, and lost to the steps meanwhile."""
    steps = side.steps
    steps.before_change = side.staged
    begun = steps.now()
    side.save()
    blocked = stall = steps.now() - begun
    while side.saving():
        stall += steps.step() - step_s
        blocked += steps.waited_s
    return blocked, side.finish(), stall


@contextmanager
def _places(device: str) -> Iterator[dict[str, str]]:
    """Name -> URL: the object store, where there is to be one, and a local directory."""
    folder = Path(tempfile.mkdtemp(prefix="ofb-"))
    local = {"local": str(folder / "local")}
    try:
        if device == "cpu":
            with _store(folder / "stack") as url:
                yield {"s3": url, **local}
        else:
            yield local
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _store(folder: Path) -> Iterator[str]:
    from workflows.stack import StackConfig, connect, down, up
    from workflows.stack.config import MlflowConfig, RayConfig

    before = dict(os.environ)
    off = {"mlflow": MlflowConfig(enabled=False), "ray": RayConfig(enabled=False)}
    try:
        up(StackConfig(**off, min_free_mb=0), folder)
        connect(folder)
        yield "s3://oneflow/bench-checkpoint"
    finally:
        down(folder, purge=True)
        os.environ.clear()
        os.environ.update(before)
