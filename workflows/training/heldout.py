"""The held-out loss: the same packs of documents that training never reads, at every evaluation."""

from collections import Counter

import torch
import torch.distributed as dist
from torch import nn

from oneflow_core.data.lanes import LaneError
from workflows.errors import UsageError
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials
from workflows.training.meter import PART_NAMES, SUM
from workflows.training.parallel import Worker, summed


class HeldOut:
    """This worker's share of the held-out packs, with the normalisers of all. All ranks must make one together.

    Raises:
        UsageError: too few documents are held out for every lane to have some.
    """

    def __init__(self, config: TrainConfig, materials: Materials, worker: Worker) -> None:
        self._objective, self._worker = materials.objective, worker
        self._packs = _packs(config, materials, worker)
        shares = Counter[str]()
        for pack in self._packs:
            shares.update(self._objective.normalisers(pack))
        names = sorted(shares)
        self._normalisers = dict(zip(names, summed([shares[name] for name in names]), strict=True))

    @torch.no_grad()
    def loss(self, model: nn.Module) -> dict[str, float]:
        """The loss and its parts over all held-out packs, as many on every rank. All ranks must call it."""
        sums: dict[str, torch.Tensor] = {}
        for pack in self._packs:
            out = self._objective.loss(model, pack.to(self._worker.device), self._normalisers)
            for name, value in {SUM: out.total, **out.parts}.items():
                sums[name] = sums.get(name, 0) + value
        names = sorted(sums)
        values = torch.stack([sums[name].float() for name in names])
        dist.all_reduce(values)
        return {
            f"heldout/{PART_NAMES.get(name, name)}": value
            for name, value in zip(names, values.tolist(), strict=True)
        }


def _packs(config: TrainConfig, materials: Materials, worker: Worker) -> list:
    loader = materials.build_loader(config.data, config.seed, "heldout", worker.rank, worker.world_size)
    try:
        return next(iter(loader))
    except LaneError as error:
        mend = "raise data.holdout, lower data.lanes, or set data.holdout=0 for none"
        raise UsageError("the held-out documents", str(error), mend) from None
    finally:
        loader.close()
