"""The floor: a plain bidirectional Transformer on the kept tokens alone, with nothing of the method around it.

The blocks have our sizes (RMSNorm, one projection for q, k and v, SwiGLU); positions are a learnt table in place of
RoPE, attention is one call a document without padding, the text head is asked at the few rows that miss something, for
one token each, and the image head gives a velocity.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneflow_core.model import ModelConfig
from oneflow_core.packing import Pack


@dataclass
class Kept:
    """What the floor is given of a pack, ready made."""

    token_T: Tensor
    position_T: Tensor
    lengths: list[int]
    """Tokens of each document."""
    patch_N: Tensor
    noisy_ND: Tensor
    velocity_ND: Tensor
    row_R: Tensor
    """Tokens right of which some are missing."""
    wanted_R: Tensor
    """One missing token of each."""

    @classmethod
    def of(cls, pack: Pack) -> "Kept":
        """The kept tokens of a pack of ours."""
        inputs = pack.inputs
        assert inputs.pair_row_K is not None and inputs.pair_token_K is not None
        row_R = inputs.slot_S[inputs.logit_slot_R]
        first_R = torch.searchsorted(inputs.pair_row_K, torch.arange(len(row_R), device=row_R.device))
        return cls(
            inputs.token_T,
            inputs.position_T,
            torch.bincount(inputs.attention.document_T).tolist(),
            inputs.patch_N,
            inputs.noisy_ND,
            pack.clean_ND - pack.noise_ND,
            row_R,
            inputs.pair_token_K[first_R],
        )


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.gate_up = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_TD: Tensor, lengths: list[int]) -> Tensor:
        """[T, D] -> [T, D]."""
        qkv_T3Hd = self.qkv(self.attention_norm(x_TD)).unflatten(-1, (3, self.heads, -1))
        parts = []
        for document in qkv_T3Hd.split(lengths):
            q, k, v = document.permute(1, 2, 0, 3).unsqueeze(1)
            parts.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
        x_TD = x_TD + self.out(torch.cat(parts))
        gate, up = self.gate_up(self.ffn_norm(x_TD)).chunk(2, dim=-1)
        return x_TD + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    """Embeddings, blocks, a text head and an image head; `forward` gives the loss."""

    def __init__(self, config: ModelConfig, longest: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(longest, config.width)
        self.patches = nn.Linear(config.patch_dim, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.tokens = nn.Linear(config.width, config.vocab_size, bias=False)
        self.image = nn.Linear(config.width, config.patch_dim)

    def forward(self, kept: Kept) -> Tensor:
        """Cross entropy of the rows and squared error of the patches."""
        x_TD = self.embedding(kept.token_T) + self.position(kept.position_T)
        x_TD = x_TD.index_add(0, kept.patch_N, self.patches(kept.noisy_ND))
        for block in self.blocks:
            x_TD = block(x_TD, kept.lengths)
        x_TD = self.norm(x_TD)
        text = F.cross_entropy(self.tokens(x_TD[kept.row_R]), kept.wanted_R)
        return text + F.mse_loss(self.image(x_TD[kept.patch_N]), kept.velocity_ND)
