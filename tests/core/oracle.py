"""A network that knows: its heads say what a closed form says of each document's tokens and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oneflow_core.model import ModelInputs, ModelOutputs
from oneflow_core.sampling import Generation, InsertionSampler, Request, SamplerConfig
from tests.core.words import TINY

SURE = 50.0
"""Largest logit of pi: its sigmoid is 0 or 1 in float32."""


@dataclass(frozen=True)
class Said:
    """What the heads say of one document's slots: BOS and each token after it."""

    pi_S: NDArray[np.float64]
    rate_S: NDArray[np.float64]
    tokens_SV: NDArray[np.float64]
    """Any multiple of the token probabilities."""


Knowledge = Callable[[tuple[int, ...], float], Said]
"""Of the tokens after BOS and the text's time."""


class Oracle(nn.Module):
    """Answers for documents of text without a prompt; `told` says whether its answers depend on the time."""

    def __init__(self, vocabulary: int, knows: Knowledge, told: bool = False) -> None:
        super().__init__()
        self.config = replace(TINY, vocab_size=vocabulary, text_time=told)
        self.knows, self.place = knows, nn.Parameter(torch.zeros(1))

    def forward(self, inputs: ModelInputs) -> ModelOutputs:
        lengths = inputs.attention.document_T.unique(return_counts=True)[1].tolist()
        texts = [tuple(t.tolist()) for t in inputs.token_T.split(lengths)]
        times = [float(t[0]) for t in inputs.text_time_T.split(lengths)]
        said = [self.knows(text[1:], time) for text, time in zip(texts, times, strict=True)]
        pi, rate, tokens = (
            torch.from_numpy(np.concatenate([getattr(s, name) for s in said]))
            for name in ("pi_S", "rate_S", "tokens_SV")
        )
        logit = torch.logit(pi).clamp(-SURE, SURE).float()
        return ModelOutputs(logit, rate.float(), tokens.log().float(), None, inputs.noisy_ND)


def write(oracle: Oracle, count: int, **config: float | str) -> list[Generation]:
    """`count` texts, by the sampler."""
    requests = [Request((), "text", (2, 2), seed) for seed in range(count)]
    sampler = InsertionSampler(oracle, bos_id=0, image_id=1)  # type: ignore[arg-type]
    return sampler.generate(requests, SamplerConfig(flush=0, **config))  # type: ignore[arg-type]
