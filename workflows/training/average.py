"""The moving average in the model's place, for evaluation and samples: no second model is held.

Each rank swaps its own pieces. While the average is in, a forward pass of the model is one of FSDP: all ranks must make
the same number of them, except inside `gathered`, where the model is whole on every rank and they are free.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from workflows.training.config import ComputeSettings
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import fsdp_modules, local
from workflows.training.tensor_parallel import undivided


@contextmanager
def averaged(model: nn.Module, optimiser: Optimiser) -> Iterator[None]:
    """Within it `model` has the averaged weights, and the optimiser's average the trained ones; after it all is back,
    bit for bit. All ranks must enter it, between two steps."""
    _swap(model, optimiser)
    try:
        yield
    finally:
        _swap(model, optimiser)


@contextmanager
def gathered(model: nn.Module, settings: ComputeSettings) -> Iterator[None]:
    """Within it every rank holds the whole model, in the precision of the passes, and forward passes need no other
    rank: sampling takes as many as its text asks for. All ranks must enter it."""
    parts = fsdp_modules(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with undivided(model):
            yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(settings.reshard_after_forward, recurse=False)
            part.reshard()


@torch.no_grad()
def _swap(model: nn.Module, optimiser: Optimiser) -> None:
    for part in fsdp_modules(model):
        part.reshard()
    average = optimiser.average
    for name, parameter in model.named_parameters():
        mine, other = local(parameter), local(average[name])
        held = mine.clone()
        mine.copy_(other)
        other.copy_(held)
