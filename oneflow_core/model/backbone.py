"""The trunk: Llama-style blocks (RMSNorm, RoPE, SwiGLU, grouped-query attention), fully bidirectional."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneflow_core.model.adapters import TimeEmbedding
from oneflow_core.model.attention import AttentionPlan, attend, rectangles, taken, to_rounded
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.config import ModelConfig
from oneflow_core.precision import widen

LLAMA3_CONTEXT, LLAMA3_SLOW, LLAMA3_FAST = 8192, 1.0, 4.0
"""Of Llama 3's scaling: rotations of under SLOW turns in its first context are slowed, of over FAST are not."""


def rotary_table(position_T: Tensor, head_dim: int, theta: float, scaling: float = 1.0) -> Tensor:
    """Unit complex numbers of RoPE, [T, 1, head_dim / 2], complex64.

    `scaling` above 1 slows the slow rotations by that factor, and those between in part, as Llama 3.1 and later do.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=position_T.device).float() / head_dim)
    if scaling != 1:
        turns = LLAMA3_CONTEXT * frequency / (2 * math.pi)
        kept = ((turns - LLAMA3_SLOW) / (LLAMA3_FAST - LLAMA3_SLOW)).clamp(0, 1)
        frequency = frequency * (kept + (1 - kept) / scaling)
    angle = position_T.float()[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle)[:, None]


def rotate(x_THd: Tensor, rope: Tensor) -> Tensor:
    """Rotates neighbouring pairs of each head: one complex product, in float32 at least; where no gradient is recorded
    and that is `x`'s own precision, in place.

    This is Meta's order of dimensions; Hugging Face's halves are the same up to a permutation of the weights.
    """
    if torch.compiler.is_compiling():
        # The compiler fuses real products with what is around them and complex ones not at all.
        (x, y), (cos, sin) = (
            v.unbind(-1) for v in (widen(x_THd).unflatten(-1, (-1, 2)), torch.view_as_real(rope))
        )
        return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1).flatten(-2).to(x_THd.dtype)
    wide_THd = widen(x_THd)
    pairs = torch.view_as_complex(wide_THd.unflatten(-1, (-1, 2)))
    if not torch.is_grad_enabled():
        pairs.mul_(rope)
        return wide_THd.to(x_THd.dtype)
    return torch.view_as_real(pairs * rope).flatten(-2).to(x_THd.dtype)


Memory = tuple[Tensor, Tensor]
"""Keys and values of one layer, [R, G, d] each."""


class Attention(nn.Module):
    """Grouped-query self-attention, as the plan says; q, k and v in one projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self.rectangles = rectangles

    def forward(
        self,
        x_TD: Tensor,
        rope: Tensor,
        plan: AttentionPlan,
        memory: Memory | None = None,
        read_R: Tensor | None = None,
    ) -> Tensor:
        """[T, D] -> [T, D]; with a memory, keys and values are written there first and read from there.

        With `read_R`, for those tokens alone: [R, D].
        """
        qkv = self.qkv(x_TD).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(qk, rope).split([self.heads, self.kv_heads], dim=1)
        if plan.sharpness_T is not None:
            q = q * plan.sharpness_T.to(q.dtype)[:, None, None]
        if memory is not None and plan.write_T is not None:
            k, v = (x.index_copy_(0, plan.write_T, new) for x, new in zip(memory, (k, v), strict=True))
        out_THd = attend(q, k, v, plan, self.rectangles)
        return self.out(taken(out_THd, read_R).flatten(1))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x); gate and up in one projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate, up = self.gate_up(x_TD).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return self.down(F.silu(gate) * up)
        # Nobody asks for them again: in place the widest arrays of a pass are gone through twice less.
        return self.down(F.silu(gate, inplace=True).mul_(up))


@dataclass
class Clock:
    """The text's time as the trunk is told it: embeddings of the different times, and which each token has."""

    time_UD: Tensor
    which_T: Tensor


class Modulation(nn.Module):
    """Shift, scale and gate of the two halves of a block, from the time: all zero at the start (AdaLN-Zero, DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 6 * width)

    def forward(self, clock: Clock) -> tuple[Tensor, ...]:
        """Six of [T, D]: shift, scale, gate of the attention, and of the feed-forward; gates are around 1."""
        parts_U6D = self.project(F.silu(clock.time_UD))
        return parts_U6D[clock.which_T].chunk(6, dim=-1)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual; the unit of FSDP, checkpointing and compile."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = SwiGLU(config)
        self.modulation = Modulation(config.width) if config.text_time else None

    def forward(
        self,
        x_TD: Tensor,
        rope: Tensor,
        plan: AttentionPlan,
        clock: Clock | None = None,
        memory: Memory | None = None,
        read_R: Tensor | None = None,
    ) -> Tensor:
        """[T, D] -> [T, D]; with `read_R` what becomes of those tokens alone, [R, D]."""
        if self.modulation is None or clock is None:
            heard_TD = self.attention(self.attention_norm(x_TD), rope, plan, memory, read_R)
            x_TD = taken(x_TD, read_R) + heard_TD
            return x_TD + self.ffn(self.ffn_norm(x_TD))
        shift, scale, *rest = self.modulation(clock)
        gate, ffn_shift, ffn_scale, ffn_gate = (taken(part, read_R) for part in rest)
        heard_TD = torch.addcmul(shift, self.attention_norm(x_TD), 1 + scale)
        heard_TD = self.attention(heard_TD, rope, plan, memory, read_R)
        x_TD = torch.addcmul(taken(x_TD, read_R), heard_TD, 1 + gate)
        heard_TD = torch.addcmul(ffn_shift, self.ffn_norm(x_TD), 1 + ffn_scale)
        return torch.addcmul(x_TD, self.ffn(heard_TD), 1 + ffn_gate)


class Backbone(nn.Module):
    """The stack of blocks and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.time = TimeEmbedding(config.width) if config.text_time else None

    def children_blocks(self) -> Iterator[Block]:
        """The blocks, first to last."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def forward(
        self,
        x_TD: Tensor,
        position_T: Tensor,
        plan: AttentionPlan,
        text_time_T: Tensor | None = None,
        cache: KeyValueCache | None = None,
        read_R: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states, [T, D]; `text_time_T` is for a trunk that is told the time.

        With `read_R` those of these tokens alone, [R, D]: the last block does no more for the others than to show them.

        With a cache the plan's keys are its rows, among which the tokens of this pass are written first.
        """
        config, read = self.config, None
        if plan.alone and not (torch.is_grad_enabled() or x_TD.is_cuda):
            # Put in the order of attention once, nothing is gathered layer by layer.
            read_R = taken(plan.restore_T, read_R)
            read, read_R = len(read_R), to_rounded(read_R)
            plan, token_Q = plan.in_order()
            x_TD, position_T = x_TD[token_Q], position_T[token_Q]
            text_time_T = None if text_time_T is None else text_time_T[token_Q]
        rope = rotary_table(position_T, config.head_dim, config.rope_theta, config.rope_scaling)
        clock = None
        if self.time is not None:
            if text_time_T is None:
                raise ValueError("this trunk is told the text's time (text_time); give text_time_T")
            times_U, which_T = text_time_T.unique(return_inverse=True)
            clock = Clock(self.time(times_U), which_T)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            memory = cache.layer(number) if cache else None
            x_TD = block(x_TD, rope, plan, clock, memory, read_R if number == last else None)
        return self.norm(x_TD[:read])
