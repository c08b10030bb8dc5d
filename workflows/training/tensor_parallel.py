"""Tensor parallelism: ranks of a group share the arithmetic of the same packs, head by head and column by column.

Each rank multiplies its own query, key and value heads and its own columns of SwiGLU, and what `out` and `down` gave
is summed over the group (Megatron-LM, arXiv 1909.08053). Parameters stay what they are: FSDP shards them over all
ranks and gathers a block for its passes, of which a rank then uses its rows. So names, checkpoints, optimisers and
norms know nothing of it.

A rank's loss is its share of the group's: normalisers are summed over all ranks, which counts a pack once a rank. The
gradient of a sum over ranks is the sum of the gradients, so each rank's gradients are parts, also those of what all
compute alike, and FSDP's sum over all ranks is the whole. The adjoint of the sum over the group is the same sum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from oneflow_core.model import ModelConfig
from oneflow_core.model.attention import AttentionPlan, attend
from oneflow_core.model.backbone import Attention, Memory, SwiGLU, rotate, taken
from workflows.errors import UsageError

DIVIDED = ("kv_heads", "heads", "ffn")
"""Dimensions that are shared out."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a whole is this rank's."""

    index: int
    count: int
    group: dist.ProcessGroup

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A view of this rank's part: FSDP frees the memory of what it is a view of, a copy would stay."""
        return tensor.chunk(self.count, dim)[self.index]


class _Sum(torch.autograd.Function):
    """Sum over a group, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        # A copy, as selective checkpointing keeps the product and must find it unchanged.
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def check_dimensions(config: ModelConfig, count: int) -> None:
    """Whether a network can be shared out among `count` ranks.

    Raises:
        UsageError: `count` does not divide its heads, key/value heads or hidden width.
    """
    for name in DIVIDED:
        if getattr(config, name) % count:
            cause = f"the network has {name} {getattr(config, name)}"
            raise UsageError(f"compute.tensor_parallel {count}", cause, "it must divide them")


def group_of(count: int) -> Part:
    """This rank's part of the group of `count` ranks that follow one another. All ranks must call it."""
    group, _ = dist.new_subgroups(count)
    assert group is not None
    return Part(dist.get_rank() % count, count, group)


def divide(model: nn.Module, part: Part) -> None:
    """Let the attention and the SwiGLU of every block of `model` compute `part` alone; before the model is sharded.

    Raises:
        UsageError: as `check_dimensions`.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    check_dimensions(config, part.count)
    for module in model.modules():
        if isinstance(module, Attention):
            object.__setattr__(module, "forward", partial(_attention, module, part))
        if isinstance(module, SwiGLU):
            object.__setattr__(module, "forward", partial(_swiglu, module, part))


@contextmanager
def undivided(model: nn.Module) -> Iterator[None]:
    """Within it every rank computes the whole of `model` by itself, whose parameters it must hold whole."""
    held = {m: m.__dict__.pop("forward") for m in model.modules() if _is_divided(m)}
    try:
        yield
    finally:
        for module, forward in held.items():
            object.__setattr__(module, "forward", forward)


def _is_divided(module: nn.Module) -> bool:
    return isinstance(module, Attention | SwiGLU) and "forward" in module.__dict__


def _attention(
    module: Attention,
    part: Part,
    x_TD: Tensor,
    rope: Tensor,
    plan: AttentionPlan,
    memory: Memory | None = None,
    read_R: Tensor | None = None,
) -> Tensor:
    """`Attention.forward` of this rank's heads, summed over the group; without a memory, which holds all heads."""
    if memory is not None:
        raise ValueError("a cache holds the keys of all heads; generate within undivided()")
    kv = module.kv_heads * module.head_dim
    weights = module.qkv.weight.split([module.heads * module.head_dim, kv, kv])
    q, k, v = (F.linear(x_TD, part.of(w)).unflatten(-1, (-1, module.head_dim)) for w in weights)
    q, k = rotate(q, rope), rotate(k, rope)
    if plan.sharpness_T is not None:
        q = q * plan.sharpness_T.to(q.dtype)[:, None, None]
    out_THd = taken(attend(q, k, v, plan, module.rectangles), read_R)
    return _summed(F.linear(out_THd.flatten(1), part.of(module.out.weight, 1)), part)


def _swiglu(module: SwiGLU, part: Part, x_TD: Tensor) -> Tensor:
    """`SwiGLU.forward` of this rank's columns, summed over the group."""
    gate, up = (F.linear(x_TD, part.of(w)) for w in module.gate_up.weight.chunk(2))
    return _summed(F.linear(F.silu(gate) * up, part.of(module.down.weight, 1)), part)


def _summed(value: Tensor, part: Part) -> Tensor:
    total: Tensor = _Sum.apply(value, part.group)
    return total
