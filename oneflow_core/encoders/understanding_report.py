"""What an understanding encoder knows of scenes that its training never drew: linear readings, and retrieval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.encoders.siblings import cell_labels, sibling
from oneflow_core.encoders.understanding import UnderstandingEncoder
from oneflow_core.shapes import Scene, Split, render, sample_in_split
from oneflow_core.shapes.grammar import canonical_caption

ATTRIBUTES = ("shape", "colour", "size")
HELDOUT: tuple[Split, ...] = ("heldout_random", "heldout_pair", "heldout_triple")


def measure_understanding_encoder(
    encoder: UnderstandingEncoder, test: int = 600, *, train: int = 4000, gallery: int = 256
) -> dict[str, dict[str, float]]:
    """Shares right, from 0 to 1: `probe` by linear readings of the patch features, `retrieval` by `score`."""
    rng = np.random.default_rng(30_000)
    seen = [sample_in_split(rng, "train") for _ in range(train)]
    unseen = [sample_in_split(rng, HELDOUT[i % 3]) for i in range(test)]
    return {
        "probe": _probe(encoder, seen, unseen),
        "retrieval": _retrieval(encoder, list(dict.fromkeys(unseen))[:gallery], rng),
    }


def _probe(encoder: UnderstandingEncoder, seen: Sequence[Scene], unseen: Sequence[Scene]) -> dict[str, float]:
    """Ridge regression from all patch features to what is in each cell; attributes count in occupied cells only."""
    inputs, labels = _design(encoder, seen), cell_labels(seen)
    test_inputs, truth = _design(encoder, unseen), cell_labels(unseen)
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * torch.eye(inputs.shape[1])
    occupied = truth[..., 0] > 0
    result = {}
    for index, name in enumerate(ATTRIBUTES):
        kinds = int(labels[..., index].max()) + 1
        targets = torch.nn.functional.one_hot(torch.from_numpy(labels[..., index]), kinds).float().flatten(1)
        weights = torch.linalg.solve(gram, inputs.T @ targets)
        guess = (test_inputs @ weights).view(len(unseen), -1, kinds).numpy()
        result[name] = _share(guess[..., 1:].argmax(-1) + 1 == truth[..., index], occupied)
        if index == 0:
            result["occupied"] = _share((guess.argmax(-1) > 0) == occupied, np.ones_like(occupied))
    return result


def _retrieval(
    encoder: UnderstandingEncoder, scenes: Sequence[Scene], rng: np.random.Generator
) -> dict[str, float]:
    pictures = _pictures(scenes)
    texts = [canonical_caption(s) for s in scenes]
    similar = encoder.score(pictures, texts)
    own = torch.arange(len(scenes))
    wrong = encoder.score(pictures, [canonical_caption(sibling(s, rng)) for s in scenes]).diagonal()
    return {
        "gallery": len(scenes),
        "text_of_image": float((similar.argmax(1) == own).float().mean()),
        "image_of_text": float((similar.argmax(0) == own).float().mean()),
        "own_over_one_change": float((similar.diagonal() > wrong).float().mean()),
    }


def _design(encoder: UnderstandingEncoder, scenes: Sequence[Scene]) -> Tensor:
    features = encoder.encode(_pictures(scenes)).flatten(1)
    return torch.cat([features, torch.ones(len(features), 1)], 1)


def _pictures(scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    return np.stack([render(s) for s in scenes])


def _share(right: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return round(float(right[of].mean()), 4)
