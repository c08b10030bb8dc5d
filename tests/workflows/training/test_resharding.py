"""A checkpoint is read on any number of processes and any mesh, bit for bit, and holds each value once."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.workflows.training.processes import forking
from tests.workflows.training.test_optimiser import Small
from workflows.storage import read_json
from workflows.training.checkpoint import Checkpoints, committed_steps
from workflows.training.config import ComputeSettings, OptimiserSettings
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import Worker, shard, whole

WORLDS = (1, 2, 4, 1)
SETTINGS = OptimiserSettings(kind="muon", lr=0.05, weight_decay=0.3, clip=0.5)
MESHES = {
    1: [((1,), (Shard(0),))],
    2: [((2,), (Shard(1),)), ((2, 1), (Replicate(), Shard(0)))],
    4: [((2, 2), (Replicate(), Shard(0))), ((2, 2), (Shard(0), Shard(1))), ((4,), (Shard(0),))],
}
"""How matrices are laid out on so many processes: FSDP, HSDP, FSDP with tensor parallel, rows for too few ranks."""
MATRICES = {"even": (8, 6), "uneven": (5, 7), "few": (3, 2)}


def laid_out(world: int, *, filled: bool) -> dict[str, torch.Tensor]:
    """Every matrix in each layout of another world, and one that is not sharded at all."""
    held = {"plain": torch.arange(9.0)}
    for number in range(3):
        shape, placements = MESHES[world][number % len(MESHES[world])]
        mesh = init_device_mesh("cpu", shape)
        for name, size in MATRICES.items():
            matrix = torch.arange(size[0] * size[1], dtype=torch.float32).reshape(size) + number
            held[f"{name}.{number}"] = distribute_tensor(matrix, mesh, placements)
    return held if filled else {name: torch.zeros_like(t) for name, t in held.items()}


def one_step(model: nn.Module, optimiser: Optimiser, step: int) -> None:
    """The same step on any number of processes: each gives its share of the sum."""
    model(torch.arange(5).roll(step)[:3]).div(dist.get_world_size()).backward()
    optimiser.step(0.05, 0.9)


def begun(world: int, rank: int) -> tuple[nn.Module, Optimiser]:
    torch.manual_seed(0)
    model = Small()
    settings = ComputeSettings(workers=world, device="cpu", shard_min_mb=0)
    shard(model, settings, Worker(rank, world, torch.device("cpu")))
    return model, Optimiser(model, SETTINGS)


def _rank(rank: int, world: int, port: int, directory: Path, step: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    model, optimiser = begun(world, rank)
    checkpoints = Checkpoints(str(directory / "run"), keep=9, piece_bytes=256)
    matrices = laid_out(world, filled=step == 0)
    held = optimiser.tensors() | matrices
    restored = checkpoints.restore(held)
    assert (restored.step if restored else 0) == step
    if restored:
        optimiser.set_steps(step)
        before = torch.load(directory / f"whole-{step}", weights_only=True)
        for name, tensor in held.items():
            assert torch.equal(whole(tensor), before[name]), name
    one_step(model, optimiser, step)
    checkpoints.save(step + 1, held, {})
    wholes = {name: whole(tensor) for name, tensor in held.items()}
    if rank == 0:
        torch.save(wholes, directory / f"whole-{step + 1}")
    checkpoints.close()
    dist.destroy_process_group()


def on(world: int, directory: Path, step: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forking()
    ranks = [context.Process(target=_rank, args=(r, world, port, directory, step)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * world


def test_one_then_two_then_four_processes_then_one_go_on_as_one_would(alone: Worker, tmp_path: Path) -> None:
    for step, world in enumerate(WORLDS):
        on(world, tmp_path, step)
    root = str(tmp_path / "run")
    assert committed_steps(root) == [4, 3, 2, 1]
    for step in committed_steps(root):
        commit = read_json(f"{root}/commits/step-{step:09d}.json")
        values = sum(t.numel() * t.element_size() for t in torch.load(tmp_path / f"whole-{step}").values())
        heads = sum(int.from_bytes((tmp_path / "run" / commit["directory"] / name).read_bytes()[:8], "little") + 8
                    for name, _, _ in commit["files"])  # fmt: skip
        assert sum(size for _, size, _ in commit["files"]) == values + heads

    model, optimiser = begun(1, 0)
    for step in range(len(WORLDS)):
        one_step(model, optimiser, step)
    theirs = torch.load(tmp_path / "whole-4", weights_only=True)
    for name, tensor in optimiser.tensors().items():
        torch.testing.assert_close(whole(tensor), theirs[name], rtol=1e-5, atol=1e-6)
    assert any(name.startswith("momentum.") for name in optimiser.tensors())
