"""How the embedded understanding encoder was made: a small SigLIP, trained on scenes and their captions."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oneflow_core.encoders import imagery
from oneflow_core.encoders.latent_fit import Progress, annealed
from oneflow_core.encoders.preprocessing import Preprocessing
from oneflow_core.encoders.siblings import cell_labels, sibling_in_training, truth
from oneflow_core.encoders.understanding import pad_ids
from oneflow_core.muon import LayerMuon
from oneflow_core.shapes import render, sample_in_split
from oneflow_core.shapes.grammar import canonical_caption, caption, parse
from oneflow_core.tokenizer import Tokenizer

EMBEDDED_NAME = "oneflow-siglip-64"
CLASSES = (7, 7, 3)
"""Kinds of shape, colour and size in a cell, the empty cell among them."""
THUMBNAIL = 8
"""Side to which a patch is reduced for the appearance term, in pixels."""


@dataclass(frozen=True)
class UnderstandingRecipe:
    """What the fit does. The sigmoid loss is SigLIP's; two terms keep the patch features local and general."""

    width: int = 128
    layers: int = 4
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    patch: int = 16
    positions: int = 48
    """Tokens of a caption; the longest seen has 45."""
    steps: int = 6000
    minutes: float = math.inf
    """The rate falls to zero at whichever comes first: the last step or this time."""
    pairs: int = 32
    """Pairs of sibling scenes in a batch, each with its picture and its caption."""
    photographs: int = 8
    graphics: int = 8
    canonical: float = 0.3
    """Share of captions that say everything."""
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 1e-2
    located: float = 1.0
    """Weight of a linear reading of what is in each cell from the patch features of the picture."""
    appearance: float = 1.0
    """Weight of a linear reading of each patch's thumbnail from its features; photographs and graphics too."""
    seed: int = 0


class Readings(nn.Module):
    """The two linear readings of patch features that exist in training only."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(patches * width, 9 * sum(CLASSES))
        self.thumbnail = nn.Linear(width, 3 * THUMBNAIL**2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cell logits [N, 9, 17] and thumbnails [N, P, 192] of features [N, P, width]."""
        return self.cells(features.flatten(1)).unflatten(1, (9, -1)), self.thumbnail(features)


def new_siglip(recipe: UnderstandingRecipe, vocabulary: int) -> Any:
    """An untrained SiglipModel of two towers."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(
        vision_config=_tower(recipe.width, recipe.layers, recipe.heads)
        | {"image_size": imagery.SIZE, "patch_size": recipe.patch},
        text_config=_tower(recipe.text_width, recipe.text_layers, recipe.heads)
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": recipe.positions,
            "projection_size": recipe.width,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
    )
    model = SiglipModel(config)
    nn.init.constant_(model.logit_scale, math.log(10.0))
    nn.init.constant_(model.logit_bias, -5.0)
    return model


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def fit_understanding_encoder(
    recipe: UnderstandingRecipe, progress: Progress | None = None, every: int = 100
) -> Any:
    """Trains a SiglipModel from scratch; `progress(step, losses)` is called every `every` steps.

    Raises:
        FileNotFoundError: no package that carries photographs is installed.
    """
    torch.manual_seed(recipe.seed)
    rng, tokenizer = np.random.default_rng(recipe.seed), Tokenizer.from_pretrained("embedded")
    model = new_siglip(recipe, tokenizer.vocab_size).train()
    readings = Readings((imagery.SIZE // recipe.patch) ** 2, recipe.width)
    optimizer = LayerMuon(nn.ModuleList([model, readings]), recipe.rate, recipe.decay)
    started, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        optimizer.set_rate(recipe.rate * min(1.0, (step + 1) / recipe.warmup) * annealed(done))
        losses = _train_step(model, readings, optimizer, recipe, rng, tokenizer)
        step += 1
        done = max(step / recipe.steps, (time.monotonic() - started) / 60 / recipe.minutes)
        if progress and step % every == 0:
            progress(step, losses)
    return model.eval()


def _train_step(
    model: Any,
    readings: Readings,
    optimizer: LayerMuon,
    recipe: UnderstandingRecipe,
    rng: np.random.Generator,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    scenes = []
    for _ in range(recipe.pairs):
        scenes.append(sample_in_split(rng, "train"))
        scenes.append(sibling_in_training(scenes[-1], rng))
    texts = [canonical_caption(s) if rng.random() < recipe.canonical else caption(s, rng) for s in scenes]
    true = torch.from_numpy(truth([parse(t) or [] for t in texts], scenes))
    others = imagery.mixture(
        rng, ((imagery.photographs, recipe.photographs), (imagery.graphics, recipe.graphics))
    )
    pictures = np.concatenate([np.stack([render(s) for s in scenes]), others])
    pixels = Preprocessing(imagery.SIZE, recipe.patch)(pictures)["pixel_values"]
    ids = pad_ids([tokenizer.encode(t) for t in texts], recipe.positions, tokenizer.bos_id)
    terms = _terms(model, readings, pixels, ids, true, torch.from_numpy(cell_labels(scenes)))
    loss = terms["sigmoid"] + recipe.located * terms["located"] + recipe.appearance * terms["appearance"]
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {"loss": loss.item(), **{k: v.item() for k, v in terms.items()}}


def _terms(
    model: Any, readings: Readings, pixels: Tensor, ids: Tensor, true: Tensor, cells: Tensor
) -> dict[str, Tensor]:
    vision = model.vision_model(pixel_values=pixels)
    images = F.normalize(vision.pooler_output[: len(ids)], dim=-1)
    texts = F.normalize(model.text_model(input_ids=ids).pooler_output, dim=-1)
    logits = images @ texts.T * model.logit_scale.exp() + model.logit_bias
    sign = true.float() * 2 - 1
    cell_logits, thumbnails = readings(vision.last_hidden_state)
    return {
        "sigmoid": -F.logsigmoid(sign * logits).sum() / len(ids),
        "located": _located(cell_logits[: len(ids)], cells),
        "appearance": F.mse_loss(thumbnails, _thumbnails(pixels, vision.last_hidden_state.shape[1])),
    }


def _located(logits: Tensor, cells: Tensor) -> Tensor:
    parts = zip(logits.split(CLASSES, dim=-1), cells.unbind(-1), strict=True)
    return torch.stack([F.cross_entropy(part.flatten(0, 1), label.flatten()) for part, label in parts]).sum()


def _thumbnails(pixels: Tensor, patches: int) -> Tensor:
    """Each patch reduced to 8x8 pixels: [N, P, 192]."""
    side = round(patches**0.5) * THUMBNAIL
    return F.unfold(F.adaptive_avg_pool2d(pixels, side), THUMBNAIL, stride=THUMBNAIL).transpose(1, 2)
