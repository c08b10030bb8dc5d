"""AR + FM, the baseline after Transfusion (arXiv 2408.11039): next tokens for text, Flow Matching for images.

Text is causal; the patches of an image see each other and all before. A text that is asked for ends with BOS as its end
symbol. The documents, tasks, tokens, encoders and trunk are OneFlow's (paper section 3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oneflow_core.flows.schedule import Schedule
from oneflow_core.layout import IMAGE, TOKEN, Elements
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.objectives.canvas import Canvas, Copy, image_error, image_part, normaliser_shares
from oneflow_core.objectives.config import ObjectiveConfig
from oneflow_core.objectives.protocol import LossOutput, Normalisers
from oneflow_core.objectives.tasks import choose_task
from oneflow_core.packing import Example, Pack
from oneflow_core.sampling.causal import CausalSampler

if TYPE_CHECKING:
    from oneflow_core.data.shard import Sample
    from oneflow_core.model import OneFlowModel
    from oneflow_core.tokenizer import Tokenizer


class TransfusionObjective:
    """Asks for the next element of a document at every element; noises its images and asks where they flow."""

    def __init__(self, config: ObjectiveConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self._canvas = Canvas(config, model, tokenizer)

    def corrupt(self, sample: Sample, rng: np.random.Generator, schedule: Schedule | None = None) -> Example:
        """As `Objective.corrupt`; the text is whole, whatever the schedule, the images are noised at free times."""
        task = choose_task(sample.document, self.config.mixture, rng)
        _, clean = self._canvas.elements(task, self._canvas.pieces(task))
        following_S = next_tokens(clean, self.tokenizer.bos_id)
        slots = np.arange(len(following_S))
        copies = []
        for _ in range(self.config.copies):
            images = int((clean.kind_E == IMAGE).sum())
            times_I = self._canvas.image_times(images, rng)
            shown = self._canvas.as_read(task, clean, _read(clean, rng)) if task.reencoded else replace(clean)
            patches = self._canvas.noised(task, sample, shown.block_E[shown.kind_E == IMAGE], times_I, rng)
            copies.append(Copy(shown, np.ones_like(slots), slots, following_S, patches, 1.0))
        targets = int((~clean.prompt_E & (clean.kind_E == TOKEN)).sum())
        return self._canvas.example(task, sample, None, copies, targets)

    def normalisers(self, pack: Pack) -> dict[str, float]:
        """As `Objective.normalisers`."""
        return normaliser_shares(pack, self.config)

    def loss(self, model: nn.Module, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """Loss of one pack: cross-entropy of the next element / text normaliser + w * mean squared image error."""
        return score(model(pack.inputs), pack, normalisers, self.config, self.model)

    def sampler(self, model: OneFlowModel) -> CausalSampler:
        """As `Objective.sampler`."""
        return CausalSampler(model, bos_id=self.tokenizer.bos_id, image_id=self.tokenizer.image_id)


def score(
    outputs: ModelOutputs, pack: Pack, normalisers: Normalisers, config: ObjectiveConfig, model: ModelConfig
) -> LossOutput:
    """Weighed cross-entropy at the slots and the image loss: what both baselines have.

    Raises:
        ValueError: outputs without losses of (slot, token) pairs.
    """
    if outputs.nll_K is None:
        raise ValueError(
            "the pack carries no (slot, token) pairs; build it with oneflow_core.packing.collate"
        )
    tokens = (outputs.nll_K * pack.weight_K).sum() / max(normalisers["text"], 1.0)
    error_N = image_error(outputs, pack, config, model)
    parts = {"tokens": tokens, "image": image_part(error_N, pack, normalisers, config)}
    total = torch.stack(list(parts.values())).sum()
    detached = {k: v.detach() for k, v in parts.items()}
    return LossOutput(total, detached, outputs.nll_K.detach(), error_N.detach())


def _read(clean: Elements, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Images of a re-encoded document that are shown as features, without an image loss: those with a text after them.

    Of images that end the document the first few are too, as many as chance has it: when the sampler draws one it
    shows those before it so, and when it has drawn the last it shows that so, and the end after it must be learnt.
    """
    image_E, place_E = clean.kind_E == IMAGE, np.arange(len(clean))
    last_text = np.flatnonzero((clean.kind_E == TOKEN) & ~clean.prompt_E).max(initial=-1)
    ending = np.flatnonzero(image_E & (place_E > last_text))
    read_E = image_E & (place_E < last_text)
    read_E[ending[: rng.integers(len(ending) + 1)]] = True
    return read_E


def next_tokens(clean: Elements, end_id: int) -> NDArray[np.int64]:
    """For each slot the token of the element after it, or the end symbol where what is asked for ends there."""
    after_E = np.r_[np.where(clean.prompt_E, end_id, clean.token_E)[1:], end_id]
    return after_E[clean.slot_E]
