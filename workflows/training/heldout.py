"""The held-out loss: the same packs of documents that training never reads, at every evaluation."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oneflow_core.data.lanes import LaneError
from oneflow_core.metrics.calibration import counts_by_prediction, summary
from oneflow_core.objectives import LossOutput
from oneflow_core.objectives.tasks import TASKS
from oneflow_core.packing import Pack
from workflows.errors import UsageError
from workflows.tracking import Tracker
from workflows.training.calibration_chart import calibration_json, calibration_png
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials
from workflows.training.meter import PART_NAMES, SUM
from workflows.training.parallel import Worker, summed

Sums = dict[str, Tensor]


@dataclass
class _Held:
    """A pack, and the number of the task of each missing token and of each patch."""

    pack: Pack
    task_K: Tensor
    task_N: Tensor


class HeldOut:
    """This worker's share of the held-out packs, with the normalisers of all. All ranks must make one together.

    Raises:
        UsageError: too few documents are held out for every lane to have some.
    """

    def __init__(self, config: TrainConfig, materials: Materials, worker: Worker) -> None:
        self._objective, self._worker = materials.objective, worker
        self._full = config.watch.detail == "full"
        packs = _packs(config, materials, worker)
        self._held = [_Held(pack, *_tasks(pack)) for pack in packs]
        shares = Counter[str]()
        for pack in packs:
            shares.update(self._objective.normalisers(pack))
        names = sorted(shares)
        self._normalisers = dict(zip(names, summed([shares[name] for name in names]), strict=True))
        self._curves: Sums = {}

    @torch.no_grad()
    def loss(self, model: nn.Module) -> dict[str, float]:
        """The loss and its parts over all held-out packs, as many on every rank, by task, and the calibration of the
        heads. All ranks must call it."""
        sums: Sums = {}
        for held in self._held:
            moved = held.pack.to(self._worker.device)
            out = self._objective.loss(model, moved, self._normalisers)
            for name, value in self._sums(held, moved, out):
                sums[name] = sums[name] + value if name in sums else value
        sums = _reduced(sums)
        metrics = {
            f"heldout/{PART_NAMES.get(name, name)}": float(sums.pop(f"part {name}"))
            for name in [key.removeprefix("part ") for key in sums if key.startswith("part ")]
        }
        for name in [key for key in sums if key.startswith("task ")]:
            metrics |= _by_task(name.removeprefix("task "), sums.pop(name))
        # A tensor group's packs were counted once a rank; means do not see it, these weights do.
        self._curves = {name: held / self._worker.tensor for name, held in sums.items()}
        return metrics | {f"calibration/{name}": value for name, value in summary(sums).items()}

    def show(self, step: int, tracker: Tracker) -> None:
        """Log the calibration curves of the last call of `loss`, if there are any, as JSON and as an image."""
        if self._curves:
            tracker.json(f"calibration/step-{step:09d}.json", calibration_json(self._curves))
            tracker.image("calibration", calibration_png(self._curves, step), step)

    def _sums(self, held: _Held, moved: Pack, out: LossOutput) -> Iterator[tuple[str, Tensor]]:
        for name, value in {SUM: out.total, **out.parts}.items():
            yield f"part {name}", value.double()
        if self._full:
            device = self._worker.device
            ones_K = torch.ones_like(out.nll_K)
            yield "task text_ce", _sums_by_task(held.task_K.to(device), out.nll_K, ones_K)
            yield "task image_mse", _sums_by_task(held.task_N.to(device), out.error_N, moved.flow_N)
            yield from counts_by_prediction(moved, out).items()


def _reduced(sums: Sums) -> Sums:
    """Sums over all ranks, on the CPU."""
    flat = torch.cat([sums[name].flatten() for name in sorted(sums)])
    dist.all_reduce(flat)
    parts = flat.cpu().split([sums[name].numel() for name in sorted(sums)])
    return {name: part.view_as(sums[name]) for name, part in zip(sorted(sums), parts, strict=True)}


def _sums_by_task(task_X: Tensor, value_X: Tensor, weight_X: Tensor) -> Tensor:
    both_2X = torch.stack([weight_X.double(), weight_X.double() * value_X.double()])
    return both_2X.new_zeros(2, len(TASKS)).index_add_(1, task_X, both_2X)


def _by_task(name: str, sums: Tensor) -> dict[str, float]:
    rows = zip(TASKS, *sums.tolist(), strict=True)
    return {f"tasks/{task}/{name}": value / weight for task, weight, value in rows if weight}


def _tasks(pack: Pack) -> tuple[Tensor, Tensor]:
    """Number in TASKS of the document of each missing token and of each patch."""
    inputs = pack.inputs
    task_B = torch.tensor([TASKS.index(task) for task in pack.tasks])
    task_T = task_B[inputs.attention.document_T]
    token_R = inputs.slot_S[inputs.logit_slot_R]
    assert inputs.pair_row_K is not None
    return task_T[token_R[inputs.pair_row_K]], task_T[inputs.patch_N]


def _packs(config: TrainConfig, materials: Materials, worker: Worker) -> list[Pack]:
    loader = materials.build_loader(config.data, config.seed, "heldout", worker.data_rank, worker.data_size)
    try:
        return next(iter(loader))
    except LaneError as error:
        mend = "raise data.holdout, lower data.lanes, or set data.holdout=0 for none"
        raise UsageError("the held-out documents", str(error), mend) from None
    finally:
        loader.close()
