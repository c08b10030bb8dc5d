"""FLOPs that the method needs for a pack, whatever is recomputed or padded.

6 for each parameter and token that it takes, forward and backward (trunk: all tokens; image adapters: patches;
vocabulary head: gaps that miss something), and 12 x layers x width x n^2 for the attention of a document of n tokens
(METHOD 7.7; a causal or shared prefix sees less and is counted as if it saw all).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from oneflow_core.model import OneFlowModel
from oneflow_core.packing import Pack


@dataclass(frozen=True, slots=True)
class NeededFlops:
    """What a network's packs cost; made once, of the whole or the sharded network."""

    trunk: int
    """Parameters that every token takes."""
    image: int
    """Parameters that every latent patch takes."""
    head: int
    """Parameters that every gap takes whose tokens are asked for."""
    attention: int
    """FLOPs of attention for a squared token of a document."""

    @classmethod
    def of(cls, model: OneFlowModel) -> NeededFlops:
        """Those of `model`."""
        config = model.config
        image = _parameters(model.patches) + _parameters(model.image_head)
        head = model.heads.tokens.weight.numel()
        return cls(_parameters(model.backbone), image, head, 12 * config.layers * config.width)

    def of_pack(self, pack: Pack) -> float:
        """FLOPs of one forward and backward pass over `pack`; waits for the device where the pack lies there."""
        inputs = pack.inputs
        lengths = inputs.attention.document_T.bincount().double()
        linear = (
            self.trunk * pack.tokens + self.image * len(inputs.patch_N) + self.head * len(inputs.logit_slot_R)
        )
        return 6.0 * linear + self.attention * float((lengths**2).sum())


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
