"""What is stored of a bad step, so that it can be looked at: the packs of the workers that it came from."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from oneflow_core.objectives.protocol import LossOutput
from oneflow_core.packing import Pack
from workflows.errors import OneFlowError
from workflows.storage import join, put_atomic, read_bytes, read_json, write_json
from workflows.tracking import Tracker
from workflows.training.guard import Fault
from workflows.training.pack_files import packs_of_files, packs_to_files
from workflows.training.parallel import Worker

log = logging.getLogger(__name__)

PACKS, ABOUT = "packs.safetensors", "fault.json"
Passed = Sequence[tuple[Pack, LossOutput]]


def fault_url(root: str, step: int, rank: int) -> str:
    """Where the packs of `rank` at a bad step lie."""
    return join(root, "faults", f"step-{step:09d}", f"rank-{rank:05d}")


def record_fault(
    root: str,
    fault: Fault,
    worker: Worker,
    passed: Passed,
    normalisers: Mapping[str, float],
    tracker: Tracker | None,
) -> None:
    """Store the packs whose loss was no number; of all ranks where no loss tells. All ranks.

    A step has gone wrong, storage may have too: what cannot be written is only logged.
    """
    about = _about(fault, worker, passed, normalisers)
    told: list[Any] = [None] * worker.world_size
    dist.all_gather_object(told, about)
    guilty = [one["rank"] for one in told if not one["finite"]] or list(range(worker.world_size))
    try:
        if worker.rank in guilty:
            url = fault_url(root, fault.step, worker.rank)
            data, trees = packs_to_files([pack for pack, _ in passed])
            put_atomic(join(url, PACKS), data)
            write_json(join(url, ABOUT), {**about, "packs": trees})
            log.warning("the packs of step %d are at %s", fault.step, url)
    except OneFlowError as error:
        log.warning("the packs of step %d are not stored: %s", fault.step, error)
    if tracker:
        urls = {str(rank): fault_url(root, fault.step, rank) for rank in guilty}
        tracker.json(f"faults/step-{fault.step:09d}.json", {"ranks": told, "packs": urls})


def read_fault(url: str) -> tuple[dict[str, Any], list[Pack]]:
    """What is told of a bad step at `url`, and its packs; OneFlowError when it is none."""
    about = read_json(join(url, ABOUT))
    try:
        return about, packs_of_files(read_bytes(join(url, PACKS)), about.pop("packs"))
    except (LookupError, TypeError, ValueError) as error:
        raise OneFlowError(
            url, f"no packs of a bad step: {error!r}", "name <run root>/faults/step-N/rank-R"
        ) from None


def shown(value: float) -> float | str:
    """A number that JSON has, or its name."""
    return value if math.isfinite(value) else str(value)


def _about(fault: Fault, worker: Worker, passed: Passed, normalisers: Mapping[str, float]) -> dict[str, Any]:
    losses = [float(out.total.detach()) for _, out in passed]
    return {
        **dataclasses.asdict(fault),
        "loss": shown(fault.loss),
        "norm": shown(fault.norm),
        "rank": worker.rank,
        "world_size": worker.world_size,
        "finite": all(math.isfinite(loss) for loss in losses),
        "losses": [shown(loss) for loss in losses],
        "parts": [{name: shown(float(part)) for name, part in out.parts.items()} for _, out in passed],
        "documents": [list(pack.doc_ids) for pack, _ in passed],
        "normalisers": dict(normalisers),
    }
