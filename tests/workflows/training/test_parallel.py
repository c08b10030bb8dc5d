"""Sharding over real processes whose packs differ, against the whole model on one."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist

from oneflow_core.data.shard import Sample
from oneflow_core.model import OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import collate
from tests.core.words import TINY, WordTokenizer, image, sample, text
from tests.workflows.training.processes import forking
from workflows.training.config import ComputeSettings
from workflows.training.parallel import join_group, shard, whole

Adapter = Literal["linear", "unet"]
RANKS: list[list[Sample]] = [
    [sample(text([3, 4]), image(), seed=1, side=4), sample(image(), seed=2, side=8), sample(text([5]))],
    [sample(text([6, 7, 8]))],
]
"""Images of two sizes on one rank, none on the other."""


def gradients(adapter: Adapter, ranks: list[int], sharded: bool = False) -> dict[str, torch.Tensor]:
    """Summed over the packs of these ranks and, if sharded, over the processes."""
    config = replace(TINY, adapter=adapter, unet_channels=8, unet_blocks=1)
    torch.manual_seed(0)
    model = OneFlowModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    if sharded:
        settings = ComputeSettings(workers=len(RANKS), device="cpu", shard_min_mb=0)
        shard(model, settings, join_group(settings))
    objective = OneFlowObjective(ObjectiveConfig(), config, WordTokenizer())
    for rank in ranks:
        rng = np.random.default_rng(rank)
        pack = collate([objective.corrupt(document, rng) for document in RANKS[rank]])
        objective.loss(model, pack, {"text": 8.0, "image": 20.0}).total.backward()
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def _rank(adapter: Adapter, rank: int, port: int, directory: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(RANKS))}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    made = gradients(adapter, [rank], sharded=True)
    if rank == 0:
        torch.save(made, directory / "gradients")
    dist.destroy_process_group()


@pytest.mark.parametrize("adapter", ["linear", "unet"])
def test_gradients_of_ranks_with_and_without_images_add_up(adapter: Adapter, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forking()
    ranks = [context.Process(target=_rank, args=(adapter, r, port, tmp_path)) for r in range(len(RANKS))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * len(RANKS)
    sharded = torch.load(tmp_path / "gradients", weights_only=True)
    expected = gradients(adapter, [0, 1])
    assert sharded.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(sharded[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
