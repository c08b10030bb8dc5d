"""A training step of ours on text-image pairs, in a network of as many parameters as asked for."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, TextSegment
from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.objectives import Objective, ObjectiveConfig, build_objective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Pack, collate
from workflows.bench.meters import cost
from workflows.bench.pairs import Pairs, Sizes
from workflows.bench.random_documents import Ids
from workflows.errors import OneFlowError

APART = 0.01
"""How far the numbers of parameters of two sides may be apart."""


@dataclass
class Step:
    """A network and an objective of ours, and what a step of them costs."""

    model: OneFlowModel
    objective: Objective
    device: str

    def take(self, pairs: Pairs, seed: int) -> tuple[float, Pack]:
        """Seconds of corruption, packing, forward and backward; and the pack."""
        samples, rng = [_sample(*pair) for pair in pairs], np.random.default_rng(seed)
        self.model.zero_grad()
        with cost(self.device) as spent:
            pack = collate([self.objective.corrupt(sample, rng) for sample in samples]).to(self.device)
            self.objective.loss(self.model, pack, self.objective.normalisers(pack)).total.backward()
        return spent.seconds, pack


def oneflow_step(sizes: Sizes, parameters: int, device: str) -> Step:
    """The paper's network and objective; the hidden width of the feed-forward gives the number of parameters.

    Text and image of every pair are corrupted at once, so that each step trains on both.
    """
    dims = ModelConfig(
        vocab_size=sizes.vocabulary,
        width=sizes.heads * sizes.head_dim,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.heads,
        ffn=8,
        latent_channels=sizes.channels,
        patch=1,
        feature_dim=8,
    )
    with torch.device("meta"):
        one, two = (used_parameters(OneFlowModel(replace(dims, ffn=ffn))) for ffn in (8, 16))
    ffn = 8 * max(1, 1 + round((parameters - one) / (two - one)))
    model = OneFlowModel(replace(dims, ffn=ffn))
    apart = used_parameters(model) / parameters - 1
    if abs(apart) > APART:
        cause = f"ours has {100 * apart:.1f}% more parameters than the peer"
        raise OneFlowError("benchmark peer-transfusion", cause, "choose another peer_width")
    return _step(model, sizes.text, device)


def transfusion_step(ours: Step) -> Step:
    """AR + FM of ours on the same trunk."""
    dims = replace(ours.model.config, objective="transfusion")
    return _step(OneFlowModel(dims), ours.objective.config.max_text_tokens, ours.device)


def _step(model: OneFlowModel, text: int, device: str) -> Step:
    kind, mixture = model.config.objective, TaskMixture(concurrent=1.0, prompt_dropout=0.0)
    config = ObjectiveConfig(kind=kind, mixture=mixture, max_text_tokens=text)
    objective = build_objective(config, model.config, Ids(model.config.vocab_size))  # type: ignore[arg-type]
    return Step(model.to(device), objective, device)


def used_parameters(model: OneFlowModel) -> int:
    """Parameters without the adapter of prompt images, of which the pairs have none."""
    unused = sum(p.numel() for p in model.features.parameters())
    return sum(p.numel() for p in model.parameters()) - unused


def _sample(ids: np.ndarray, latent: np.ndarray) -> Sample:
    image = ImageSegment("0" * 64, latent.shape[2], latent.shape[1])
    segments = (TextSegment(" ".join(map(str, ids.tolist()))), image)
    return Sample(Document("pair", "bench", "CC0-1.0", segments), (latent.astype(np.float16),))
