"""The trunk's matrix products by oneDNN, for inference on a CPU in float32.

MKL, which torch takes there, lays out the weights anew in every product, and on AMD's processors comes to half to four
fifths of a core's rate where a network is wide (docs/benchmarks.md). Here they are laid out once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oneflow_core.model.backbone import SwiGLU
from oneflow_core.model.oneflow import OneFlowModel


def lay_out(model: OneFlowModel) -> None:
    """Has oneDNN compute the products of the trunk from now on, where it can and is faster.

    Passes whose keys are those of a cache are left as they are: their rows come in any number (`to_rounded`).
    The model has the `state_dict` that it had, but is for inference alone: it cannot be moved or loaded into, and
    raises RuntimeError where a gradient would go through it. Once is enough.
    """
    weight, config = model.embedding.weight, model.config
    cached = config.objective == "transfusion" or config.prompt_attention == "prefix"
    able = (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )
    laid_out = any(isinstance(m, _Product) for m in model.modules())
    if cached or laid_out or not able:
        return
    for block in model.backbone.children_blocks():
        for name in ("qkv", "out"):
            setattr(block.attention, name, _Product(getattr(block.attention, name).weight))
        block.add_module("ffn", _GatedProducts(block.ffn))


class _Product(nn.Module):
    """`nn.Linear` without a bias."""

    def __init__(self, weight_EI: Tensor) -> None:
        super().__init__()
        self.weight = _laid_out(weight_EI)

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> [T, E]."""
        _demand_inference(x_TI)
        return torch.ops.mkldnn._linear_pointwise(x_TI, self.weight, None, "none", [], "")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight.to_dense()


class _GatedProducts(nn.Module):
    """`SwiGLU`; the gate's nonlinearity and the multiplication are done where the products are."""

    def __init__(self, ffn: SwiGLU) -> None:
        super().__init__()
        self.gate, self.up = (_laid_out(half) for half in ffn.gate_up.weight.chunk(2))
        self.down = _laid_out(ffn.down.weight)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        _demand_inference(x_TD)
        product = torch.ops.mkldnn._linear_pointwise
        gate = product(x_TD, self.gate, None, "swish", [], "")
        hidden = product.binary(x_TD, gate, self.up, None, "mul")
        return product(hidden, self.down, None, "none", [], "")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        gate, up, down = (x.to_dense() for x in (self.gate, self.up, self.down))
        destination[f"{prefix}gate_up.weight"] = torch.cat([gate, up])
        destination[f"{prefix}down.weight"] = down


def _demand_inference(x: Tensor) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError(
            "this network belongs to a pipeline, which infers alone; call it under torch.inference_mode(), "
            "or take one to train from oneflow_core.model_directory.load"
        )


def _laid_out(weight_EI: Tensor) -> nn.Parameter:
    """For some hundred rows of input; fewer and more go as well."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_EI.detach().contiguous(), 512)
    return nn.Parameter(packed, requires_grad=False)
