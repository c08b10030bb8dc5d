"""Sharded Muon on real processes against the whole matrices on one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from oneflow_core.muon import direction
from tests.workflows.training.processes import forking
from workflows.training.muon import Exchange

SHAPES = [(7, 5), (6, 6), (7, 5), (1, 4), (3, 8), (6, 6), (7, 5)]
"""More of one shape than of another, and rows that three ranks cannot share evenly, or at all."""


def matrices() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def _rank(rank: int, world: int, port: int, directory: Path) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    pieces = []
    for matrix in matrices():
        chunks = matrix.chunk(world)
        pieces.append(chunks[rank] if rank < len(chunks) else matrix[:0])
    torch.save(Exchange(SHAPES).directions(pieces), directory / str(rank))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 3])
def test_steps_of_sharded_matrices_are_those_of_whole_ones(world: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forking()
    ranks = [context.Process(target=_rank, args=(r, world, port, tmp_path)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * world
    held = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(world)]
    for number, matrix in enumerate(matrices()):
        torch.testing.assert_close(torch.cat([pieces[number] for pieces in held]), direction(matrix))
