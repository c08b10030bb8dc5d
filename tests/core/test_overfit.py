"""A network that has seen one document writes and draws that document: its words, its latent, its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, ImageSegment, TextSegment
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.packing import collate
from oneflow_core.sampling import Generation, InsertionSampler, Request, SamplerConfig
from oneflow_core.shapes import Object, Scene, read, render
from oneflow_core.tokenizer import Tokenizer
from tests.core.corruptions import corrupt, objective

SCENE = Scene([Object(0, 1, "circle", "red", "large"), Object(1, 1, "cross", "green", "large")])
BEFORE, AFTER = "First a red circle.", " Then a green cross below it."
STEPS, BATCH, SEEDS = 600, 32, 20
PATCH = 4
CONFIG = SamplerConfig(steps=24, image_guidance=1.0, top_p=0.9)
"""What a small network still gives to words that it never saw there is left out of the draw."""


@dataclass(frozen=True)
class Outcome:
    """The document as it was given, and as it was made from several seeds."""

    latent: NDArray[np.float32]
    made: list[Generation]
    tokenizer: Tokenizer
    codec: LatentCodec

    @property
    def right(self) -> list[NDArray[np.float32]]:
        """The latents of the documents whose order and texts came back exactly."""
        found = []
        for generation in self.made:
            match generation.segments:
                case (tuple() as first, np.ndarray() as latent, tuple() as last):
                    if (self.tokenizer.decode(first), self.tokenizer.decode(last)) == (BEFORE, AFTER):
                        found.append(latent)
        return found

    def pixels(self, latents: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
        """Their pictures."""
        return self.codec.decode(torch.from_numpy(np.stack(latents)))


def learn(document: Sample, tokenizer: Tokenizer, channels: int) -> OneFlowModel:
    """A small network trained on corruptions of this document alone."""
    torch.manual_seed(0)
    dims = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=48,
        layers=2,
        heads=4,
        kv_heads=4,
        ffn=96,
        rope_theta=1000.0,
        latent_channels=channels,
        patch=PATCH,
        feature_dim=8,
        prediction="clean",
        clean_eps=0.1,
    )
    model, made, rng = OneFlowModel(dims), objective(dims, tokenizer), np.random.default_rng(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=6e-3, betas=(0.9, 0.95))
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        pack = collate([corrupt(made, document, rng) for _ in range(BATCH)])
        optimiser.zero_grad()
        made.loss(model, pack, made.normalisers(pack)).total.backward()
        optimiser.step()
        pace.step()
    return model.eval()


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    tokenizer, codec = Tokenizer.from_pretrained("embedded"), LatentCodec.from_pretrained("embedded")
    latent = codec.encode(render(SCENE)[None])[0].numpy().astype(np.float16)
    segments = (TextSegment(BEFORE), ImageSegment("00" * 32, 64, 64), TextSegment(AFTER))
    document = Sample(Document("one", "test", "CC0-1.0", segments), (latent,))
    model = learn(document, tokenizer, codec.channels)
    side = latent.shape[1] // PATCH
    requests = [Request((), "document", (side, side), seed) for seed in range(SEEDS)]
    sampler = InsertionSampler(model, bos_id=tokenizer.bos_id, image_id=tokenizer.image_id)
    made = sampler.generate(requests, CONFIG)
    return Outcome(latent.astype(np.float32), made, tokenizer, codec)


def test_its_words_come_back_around_its_image(outcome: Outcome) -> None:
    """From most seeds, not from all: an insertion is never taken back, and what follows a slip was never seen.

    Three initialisations gave 16, 18 and 20 documents of 20; 12 leave room for another machine's rounding.
    """
    assert len(outcome.right) >= 0.6 * SEEDS


def test_its_latent_comes_back(outcome: Outcome) -> None:
    for latent in outcome.right:
        error = np.square(latent - outcome.latent).mean() / outcome.latent.var()
        assert error < 1e-3


def test_its_pixels_come_back(outcome: Outcome) -> None:
    """Against the decoded clean latent, and the picture says to the checker what the scene is."""
    (clean,) = outcome.pixels([outcome.latent]).astype(float)
    for picture in outcome.pixels(outcome.right):
        assert 10 * np.log10(255**2 / max(np.square(picture - clean).mean(), 1e-9)) > 40
        assert read(picture) == SCENE
