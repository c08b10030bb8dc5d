"""Latents of several shapes in one pack: each document counts as it does alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, TextSegment
from oneflow_core.model import PRESETS, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import collate
from oneflow_core.tokenizer import Tokenizer

SHAPES = [(8, 8), (6, 10), (10, 6)]


def test_the_loss_of_a_pack_is_the_sum_of_its_documents() -> None:
    torch.manual_seed(0)
    dims = replace(PRESETS["nano"], latent_channels=16, feature_dim=32)
    objective = OneFlowObjective(ObjectiveConfig(), dims, Tokenizer.from_pretrained("embedded"))
    model = OneFlowModel(dims).eval()
    rng = np.random.default_rng(0)
    examples = []
    for number, (h, w) in enumerate(SHAPES * 2):
        segments = (TextSegment("a picture"), ImageSegment("0" * 64, 8 * w, 8 * h))
        latent = rng.standard_normal((16, h, w)).astype(np.float16)
        features = rng.standard_normal((16, 32)).astype(np.float16)
        sample = Sample(Document(str(number), "s", "l", segments), (latent,), (features,))
        examples.append(objective.corrupt(sample, rng))
    pack = collate(examples)
    normalisers = objective.normalisers(pack)
    with torch.no_grad():
        whole = objective.loss(model, pack, normalisers).total
        parts = [objective.loss(model, collate([e]), normalisers).total for e in examples]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-4)
