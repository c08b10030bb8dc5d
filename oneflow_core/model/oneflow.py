"""OneFlowModel: embeddings and adapters, the trunk, the heads (paper Fig. 23)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from oneflow_core.model.adapters import FeatureAdapter, PatchAdapter
from oneflow_core.model.backbone import Backbone
from oneflow_core.model.cache import KeyValueCache
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.heads import ImageHead, InsertionHeads, start_heads
from oneflow_core.model.inputs import ModelInputs, ModelOutputs
from oneflow_core.model.unet import Skips, UNetDown, UNetUp
from oneflow_core.precision import widen


class OneFlowModel(nn.Module):
    """One bidirectional Transformer over the text tokens and image patches of packed documents.

    Text is predicted without the time (paper Table 6), unless the config says `text_time`; image patches are told
    their own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.prompt = nn.Parameter(torch.zeros(config.width)) if config.prompt_embedding else None
        unet = config.adapter == "unet"
        self.patches = UNetDown(config) if unet else PatchAdapter(config)
        self.features = FeatureAdapter(config)
        self.backbone = Backbone(config)
        self.heads = InsertionHeads(config)
        self.image_head = UNetUp(config) if unet else ImageHead(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 1/fan_in), residual outputs scaled down by sqrt(2 * layers), heads as `start_heads`.

        At Llama's widths 1/sqrt(fan_in) is its 0.02; at small widths 0.02 would start far too quietly.
        """
        nn.init.normal_(self.embedding.weight, std=0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for block in self.backbone.children_blocks():
                if block.modulation is not None:
                    nn.init.zeros_(block.modulation.project.weight)
                for weight in (block.attention.out.weight, block.ffn.down.weight):
                    weight.div_(math.sqrt(2 * self.config.layers))
        start_heads(self.heads, self.image_head)

    def embed(self, inputs: ModelInputs) -> tuple[Tensor, Skips | None]:
        """The trunk's input, [T, D], and what a U-Net hands past the trunk."""
        x_TD = self.embedding(inputs.token_T)
        # Adapters run on empty packs too, so that every rank of FSDP has a gradient for every parameter.
        patches_ND, skips = self.patches(inputs.noisy_ND.to(x_TD.dtype), inputs.time_N, inputs.patch_grid_N2)
        features_MD = self.features(inputs.feature_MD.to(x_TD.dtype), inputs.feature_grid_M2)
        x_TD = x_TD.index_copy(0, inputs.patch_N, patches_ND.to(x_TD.dtype))
        x_TD = x_TD.index_copy(0, inputs.feature_M, features_MD.to(x_TD.dtype))
        if self.prompt is not None:
            x_TD = x_TD + inputs.prompt_T.to(x_TD.dtype)[:, None] * self.prompt
        return x_TD, skips

    def forward(self, inputs: ModelInputs, cache: KeyValueCache | None = None) -> ModelOutputs:
        """One pass for both modalities (paper Algorithm 2: `model(X, I, t_img)`).

        With a cache, which inference alone may give, the tokens of the pass see those of earlier ones too.
        """
        x_TD, skips = self.embed(inputs)
        at = inputs.position_T, inputs.attention, inputs.text_time_T, cache
        inference = torch.is_inference_mode_enabled()
        if inference:
            read_R = torch.cat([inputs.slot_S, inputs.patch_N])
            hidden_SD, hidden_ND = self.backbone(x_TD, *at, read_R).tensor_split([len(inputs.slot_S)])
        else:
            hidden_TD = self.backbone(x_TD, *at)
            hidden_SD, hidden_ND = hidden_TD[inputs.slot_S], hidden_TD[inputs.patch_N]
        pi_logit_S, rate_S = self.heads.counts(hidden_SD)
        hidden_RD = hidden_SD[inputs.logit_slot_R]
        logits_RV = nll_K = None
        if inputs.pair_row_K is None or inputs.pair_token_K is None:
            logits_RV = widen(self.heads.tokens(hidden_RD))
        else:
            nll_K = self.heads.nll(hidden_RD, inputs.pair_row_K, inputs.pair_token_K)
        image_ND = self.image_head(hidden_ND, skips)
        delete_logit_S = self.heads.deletions(hidden_SD)

        def late(slot_F: Tensor) -> Tensor:
            return widen(self.heads.tokens(hidden_SD[slot_F]))

        said = ModelOutputs(pi_logit_S, rate_S, logits_RV, nll_K, image_ND, delete_logit_S)
        return replace(said, late=late) if inference else said
