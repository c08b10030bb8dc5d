"""What each block of a model does beside its arithmetic: what it keeps for the backward pass, and torch.compile.

Only the forward function of a block is replaced: no module is wrapped, so parameters keep their names, and FSDP's hooks
stay outside of what is compiled or run twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from oneflow_core.model.attention import load_kernel
from oneflow_core.model.backbone import Attention
from workflows.training.config import ComputeSettings

BACKEND = "inductor"
"""Of torch.compile."""

aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
    aten._flash_attention_forward.default,
}
"""What selective checkpointing does not compute again: products, and attention."""
KEPT_BY_NAME = ("torch_attn::_varlen_attn",)
"""Operators that are there once their module is imported."""


def prepare_blocks(model: nn.Module, settings: ComputeSettings) -> None:
    """Checkpoint and compile the blocks of `model` (elements of a ModuleList) in place, as `settings` says.

    To be called before the model is sharded.
    """
    for block in blocks_of(model):
        forward: Callable[..., Any] = block.forward
        if settings.compile:
            forward = _compiled(block)
        mode = settings.activation_checkpointing
        if mode == "full":
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        elif mode == "selective" and not settings.compile:
            forward = partial(
                checkpoint, forward, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts
            )
        if forward != block.forward:
            object.__setattr__(block, "forward", forward)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, first to last."""
    return [block for m in model.modules() if isinstance(m, nn.ModuleList) for block in m]


def _compiled(block: nn.Module) -> Callable[..., Any]:
    """The block's forward function compiled once for all lengths.

    Rectangles of attention differ in number and sides from pack to pack: each would be compiled anew, so they stay
    eager, between two compiled halves.
    """
    if torch.cuda.is_available():
        load_kernel()
    for module in block.modules():
        if isinstance(module, Attention):
            module.rectangles = torch.compiler.disable(module.rectangles)
    return torch.compile(block.forward, dynamic=True, backend=BACKEND)


def _contexts() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in KEPT or getattr(operator, "name", str)().partition(".")[0] in KEPT_BY_NAME
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
