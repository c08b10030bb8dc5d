"""A whole model, untrained and tiny: real parts, small enough for a test."""

from __future__ import annotations

from functools import cache

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.latent_fit import new_vae
from oneflow_core.encoders.preprocessing import Preprocessing
from oneflow_core.encoders.understanding import UnderstandingEncoder
from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.model_directory import ModelParts
from oneflow_core.tokenizer import Tokenizer


@cache
def tiny_parts(seed: int = 0) -> ModelParts:
    """The embedded tokenizer, random encoders, and a random network that is shaken so that it speaks."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_pretrained("embedded")
    codec = LatentCodec(new_vae((8, 8, 8, 8), 4), "tiny-vae")
    tower = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    encoder = UnderstandingEncoder(SiglipVisionModel(tower), Preprocessing(64, 16), "tiny-siglip")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=32,
        layers=2,
        heads=2,
        kv_heads=1,
        ffn=64,
        latent_channels=codec.channels,
        feature_dim=encoder.dim,
        prediction="clean",
        clean_eps=0.1,
    )
    model = OneFlowModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.heads.count.bias[0] = 0.3
    return ModelParts(model, tokenizer, codec, encoder, 64, {"steps": 6}, {"run_id": "run-1"})
