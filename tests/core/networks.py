"""Small random networks that say something, for tests that compare two ways of computing the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from oneflow_core.model import ModelOutputs, OneFlowModel
from oneflow_core.sampling import InsertionSampler, Request
from oneflow_core.sampling.forward import Batch
from oneflow_core.sampling.state import State
from tests.core.words import TINY

GRID = (2, 2)


def random_model(seed: int = 5, **dims: object) -> OneFlowModel:
    """A shaken network of the tiny dimensions, with `dims` changed."""
    torch.manual_seed(seed)
    model = OneFlowModel(replace(TINY, **dims)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def mixed_requests(documents: bool = True) -> list[Request]:
    """Images, captions, an answer, and documents with and without a prompt."""
    features = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    pairs = [
        Request(((5, 6, 7),), "image", GRID, 1),
        Request((features,), "text", GRID, 2),
        Request((features, (9, 10)), "text", GRID, 3),
    ]
    open_ended = [Request((), "document", GRID, 4), Request(((4,),), "document", GRID, 5)]
    return pairs + (open_ended if documents else [])


def aligned(shown: list[int], answer: list[int]) -> list[int]:
    """Place in the answer of each shown token, or -1 for those outside a longest common subsequence."""
    best: list[list[tuple[int, ...]]] = [[()] * (len(answer) + 1) for _ in range(len(shown) + 1)]
    for i in reversed(range(len(shown))):
        for j in reversed(range(len(answer))):
            if shown[i] == answer[j]:
                best[i][j] = (i * len(answer) + j, *best[i + 1][j + 1])
            best[i][j] = max(best[i][j], best[i + 1][j], best[i][j + 1], key=len)
    place = [-1] * len(shown)
    for pair in best[0][0]:
        place[pair // len(answer)] = pair % len(answer)
    return place


class Lockstep(InsertionSampler):
    """Shows the network all documents at every step, whether they changed or not."""

    def _keep_gaps(self, state: State, batch: Batch, outputs: ModelOutputs) -> None:
        super()._keep_gaps(state, batch, outputs)
        state.changed_B[:] = True
