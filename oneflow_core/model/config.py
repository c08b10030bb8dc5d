"""Dimensions of the network, as data, and the named presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from oneflow_core.flows.insertion import Counts

ObjectiveKind = Literal["oneflow", "transfusion", "masked"]
PromptAttention = Literal["full", "prefix"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the parameters' shapes and the forward pass.

    Raises:
        ValueError: dimensions that do not divide, or a latent scale that is not above 0.
    """

    vocab_size: int = 128_256
    """Rows of the embedding and of the insertion head; the tokenizer's size."""
    width: int = 2048
    """Residual stream, D."""
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    """Key/value heads (grouped-query attention); divides `heads`."""
    ffn: int = 8192
    """Hidden width of SwiGLU."""
    rope_theta: float = 500_000.0
    rope_scaling: float = 1.0
    """Factor of Llama 3's scaling of slow rotations: 8 for Llama 3.1, 32 for 3.2, 1 for none."""
    norm_eps: float = 1e-5
    latent_channels: int = 16
    """Channels of the latent codec; 16 for SD3 and FLUX."""
    patch: int = 2
    """Side of a latent patch; 2 gives 256 tokens for a 256-pixel image at /8."""
    adapter: Literal["linear", "unet"] = "linear"
    """Between noisy latents and the trunk: a linear layer each way, or the halves of a U-Net, as in the paper. A U-Net
    carries detail around the trunk, and so bears larger patches, that is fewer tokens (Transfusion, Table 6)."""
    unet_channels: int = 672
    """Width of the U-Net at the latent's resolution; double at half of it, fourfold below, as Stable Diffusion's. At
    patches of 2 this default makes Transfusion's 0.27B parameters; 336 does so at 4, 256 at 8."""
    unet_blocks: int = 2
    """Residual blocks of the U-Net at each resolution, on the way down and on the way up."""
    feature_dim: int = 1152
    """Width of the understanding encoder's features; 1152 for SigLIP 2 so400m."""
    prediction: Literal["clean", "velocity"] = "velocity"
    """What the image head puts out (METHOD 12)."""
    clean_eps: float = 0.05
    """Least 1 - t in the conversion of a clean latent to a velocity (METHOD 12). The sampler takes no more than its
    own step, so that its last step lands on the data."""
    latent_scale: float = 1.0
    """Deviation of the corpus's latents, by which they are divided before the network sees them: flow matching wants
    data as wide as its noise. `oneflow corpus inspect` measures it; 1 for what the codec was scaled on."""
    objective: ObjectiveKind = "oneflow"
    """What the network is for: oneflow (insertions), or a baseline on the same trunk: transfusion (AR + FM: next
    tokens, causal but within an image) or masked (Mask + FM: tokens under a mask, whose id is the last one)."""
    prompt_attention: PromptAttention = "full"
    """full: the prompt attends to the whole document (the paper). prefix: leading prompt segments attend among
    themselves alone, so that their keys and values are computed once for all steps and copies (ours)."""
    counts: Counts = "gated"
    """What the count head says of a gap: pi and lambda_nonzero (the paper), or a plain Poisson rate (Edit Flows), from
    which pi = exp(-lambda) and lambda_nonzero = lambda / (1 - pi) follow; or free (ours): pi without any count, and
    for each element the probability that it does not belong to the document, so that mistakes can be taken out."""
    text_time: bool = False
    """Tells the trunk the text's time through adaptive norms, zero at the start (AdaLN); off for the paper's network,
    which is blind to it and for which length is an approximation (METHOD 7.2)."""
    prompt_embedding: bool = True
    """Adds a learnt vector to prompt tokens (Edit Flows' conditioning flag); off for the bare paper."""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}: heads must divide width into "
                "an even head size and kv_heads must divide heads"
            )
        if not 0 < self.latent_scale < float("inf"):
            raise ValueError(f"latent_scale {self.latent_scale}: must be a number above 0")
        for name, value, known in (
            ("objective", self.objective, get_args(ObjectiveKind)),
            ("prompt_attention", self.prompt_attention, get_args(PromptAttention)),
            ("counts", self.counts, get_args(Counts)),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is none of: {', '.join(known)}")
        if self.objective == "transfusion" and self.prompt_attention == "prefix":
            raise ValueError(
                "prompt_attention prefix: transfusion is causal, its prompt sees itself alone anyway"
            )
        if self.adapter not in ("linear", "unet"):
            raise ValueError(f"adapter {self.adapter!r}: must be linear or unet")
        if self.adapter == "unet" and (self.patch < 1 or self.patch & (self.patch - 1)):
            raise ValueError(
                f"patch {self.patch}: the U-Net halves images down to patches; take a power of two"
            )
        if self.unet_channels < 1 or self.unet_blocks < 1:
            raise ValueError(
                f"unet_channels {self.unet_channels}, unet_blocks {self.unet_blocks}: must be at least 1"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def mask_id(self) -> int:
        """The token that stands for one that is not yet known, under the masked objective."""
        return self.vocab_size - 1

    @property
    def patch_dim(self) -> int:
        """Numbers in one latent patch, p * p * C."""
        return self.patch * self.patch * self.latent_channels

    @property
    def unet_widths(self) -> list[int]:
        """Channels of the U-Net at each resolution, from the latent's to one place a patch."""
        return [self.unet_channels * min(4, 2**level) for level in range(self.patch.bit_length())]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a field that this version does not know.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"model config has unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        return cls(**data)


PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        vocab_size=2048,
        width=160,
        layers=5,
        heads=5,
        kv_heads=5,
        ffn=432,
        rope_theta=10_000.0,
        unet_channels=32,
        feature_dim=128,
        prediction="clean",
    ),
    "1b": ModelConfig(),
    "3b": ModelConfig(width=3072, layers=28, heads=24, kv_heads=8, ffn=8192),
    "8b": ModelConfig(width=4096, layers=32, heads=32, kv_heads=8, ffn=14336),
}
"""nano is ours, for a laptop; the others are Llama 3's dimensions (METHOD section 5)."""
