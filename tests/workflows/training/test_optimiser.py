"""The optimiser on sharded pieces against torch's own, on the whole."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor

from oneflow_core.model import OneFlowModel
from tests.core.words import TINY
from workflows.training.config import ComputeSettings, OptimiserSettings
from workflows.training.optimiser import Optimiser
from workflows.training.parallel import Worker, fsdp_modules, shard, whole


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.norm(x).square().sum()


SETTINGS = OptimiserSettings(lr=0.05, weight_decay=0.3, clip=0.5)


def reference(model: nn.Module) -> torch.optim.AdamW:
    """torch's AdamW, matrices of the blocks decaying and nothing else."""
    decayed = [block.weight for block in model.blocks]
    held = [p for p in model.parameters() if all(p is not d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": held, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), eps=1e-8)


@pytest.mark.parametrize("blocks_apart", [True, False])
def test_steps_equal_those_of_torch_and_the_average_its_closed_form(
    alone: Worker, blocks_apart: bool
) -> None:
    torch.manual_seed(0)
    plain = Small()
    with torch.no_grad():
        plain.norm.weight.uniform_(0.5, 2)
    ours = copy.deepcopy(plain)
    settings = ComputeSettings(workers=1, device="cpu", shard_min_mb=0 if blocks_apart else 16)
    shard(ours, settings, alone)
    assert len(fsdp_modules(ours)) == (3 if blocks_apart else 1)
    optimiser, adam = Optimiser(ours, SETTINGS), reference(plain)
    average = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for step in range(4):
        ids = torch.arange(5).roll(step)[:3]
        ours(ids).backward()
        plain(ids).backward()
        wanted = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = 0.05 / (step + 1)
        adam.step()
        adam.zero_grad()
        assert optimiser.step(0.05 / (step + 1), 0.9).item() == pytest.approx(wanted.item(), rel=1e-5)
        for name, p in plain.named_parameters():
            average[name] = 0.9 * average[name] + 0.1 * p.detach()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(whole(dict(ours.named_parameters())[name].detach()), p.detach())
        torch.testing.assert_close(whole(optimiser.average[name]), average[name])


def test_muon_takes_the_matrices_of_blocks_as_torchs_does_and_leaves_the_rest_to_adamw(alone: Worker) -> None:
    torch.manual_seed(0)
    plain = Small()
    ours = copy.deepcopy(plain)
    shard(ours, ComputeSettings(workers=1, device="cpu", shard_min_mb=0), alone)
    settings = SETTINGS.model_copy(update={"kind": "muon", "clip": 1e9})
    optimiser = Optimiser(ours, settings)
    matrices = [block.weight for block in plain.blocks]
    rest = [p for p in plain.parameters() if all(p is not m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.05, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        before = [m.detach().clone() for m in matrices]
        for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = distribute_tensor(p.grad.clone(), q.device_mesh, q.placements)
        muon.step()
        adam.step()
        optimiser.step(0.05, 0.9)
        made = dict(ours.named_parameters())
        for matrix, old, name in zip(matrices, before, ("blocks.0.weight", "blocks.1.weight"), strict=True):
            # torch's rounds run in bf16, ours in fp32: a few hundredths of the step.
            far = (whole(made[name].detach()) - matrix.detach()).norm() / (matrix.detach() - old).norm()
            assert far < 0.05
            with torch.no_grad():
                matrix.copy_(whole(made[name].detach()))
        for name, p in plain.named_parameters():
            torch.testing.assert_close(whole(made[name].detach()), p.detach())


def test_convolutions_decay_and_are_left_to_adamw(alone: Worker) -> None:
    torch.manual_seed(0)
    model = OneFlowModel(replace(TINY, adapter="unet", unet_channels=8, unet_blocks=1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shard(model, ComputeSettings(workers=1, device="cpu"), alone)
    optimiser = Optimiser(model, SETTINGS.model_copy(update={"kind": "muon"}))
    held = optimiser.tensors()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step(0.05, 0.9)
    for name, p in model.named_parameters():
        if name.startswith(("patches.", "image_head.")):
            assert f"exp_avg.{name}" in held and f"momentum.{name}" not in held
            kept = 1 - 0.05 * 0.3 if p.ndim in (2, 4) else 1.0
            torch.testing.assert_close(whole(p.detach()), before[name] * kept)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_that_is_written_back_goes_on_the_same(alone: Worker, kind: str) -> None:
    def begin() -> tuple[nn.Module, Optimiser]:
        torch.manual_seed(1)
        model = Small()
        shard(model, ComputeSettings(workers=1, device="cpu"), alone)
        return model, Optimiser(model, SETTINGS.model_copy(update={"kind": kind}))

    first, left = begin()
    second, right = begin()
    for _ in range(3):
        first(torch.tensor([0, 1])).backward()
        left.step(0.05, 0.9)
    for name, tensor in right.tensors().items():
        tensor.copy_(left.tensors()[name])
    right.set_steps(3)
    for model, optimiser in ((first, left), (second, right)):
        model(torch.tensor([2, 3])).backward()
        optimiser.step(0.05, 0.9)
    for name, tensor in left.tensors().items():
        assert torch.equal(whole(tensor), whole(right.tensors()[name])), name
