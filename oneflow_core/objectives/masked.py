"""Mask + FM, the baseline after LLaDA (arXiv 2502.09992): masked discrete diffusion for text, Flow Matching for images.

Texts that are asked for have a fixed length: they are filled up with BOS as the end symbol, which is learnt like any
token. Images stand where they stand in the document and are never masked, so this baseline cannot choose their places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from oneflow_core.flows.schedule import Schedule
from oneflow_core.layout import IMAGE, TOKEN, Elements, Piece
from oneflow_core.model.config import ModelConfig
from oneflow_core.objectives.canvas import Canvas, Copy, normaliser_shares
from oneflow_core.objectives.config import ObjectiveConfig
from oneflow_core.objectives.protocol import LossOutput, Normalisers
from oneflow_core.objectives.tasks import Task, choose_task
from oneflow_core.objectives.transfusion import score
from oneflow_core.packing import Example, Pack
from oneflow_core.sampling.masked import MaskedSampler

if TYPE_CHECKING:
    from oneflow_core.data.shard import Sample
    from oneflow_core.model import OneFlowModel
    from oneflow_core.tokenizer import Tokenizer


class MaskedObjective:
    """Masks each token with probability 1 - kappa(t) and asks for those that are masked.

    Raises:
        ValueError: the mask's id is one of the tokenizer's.
    """

    def __init__(self, config: ObjectiveConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.schedule = config.build_schedule()
        self._canvas = Canvas(config, model, tokenizer)
        if model.mask_id < tokenizer.vocab_size:
            raise ValueError(
                f"vocab_size {model.vocab_size} leaves no id for the mask; make it {tokenizer.vocab_size + 1}"
            )

    def corrupt(self, sample: Sample, rng: np.random.Generator, schedule: Schedule | None = None) -> Example:
        """As `Objective.corrupt`."""
        schedule = schedule or self.schedule
        task = choose_task(sample.document, self.config.mixture, rng)
        pieces = [self._filled(piece) for piece in self._canvas.pieces(task)]
        shared, clean = self._canvas.elements(task, pieces)
        clean.slot_E[:] = False
        asked_E = ~clean.prompt_E & (clean.kind_E == TOKEN)
        copies, weights = [], []
        for _ in range(self.config.copies):
            clock = 1.0 if task.text_clean else float(rng.random())
            kept = float(schedule.kappa(np.array(clock)))
            copies.append(
                self._copy(task, clean, asked_E & (rng.random(len(clean)) >= kept), clock, sample, rng)
            )
            weights.append(min(self.config.time_weight_cap, 1 / max(1 - kept, 1e-9)))
        example = self._canvas.example(task, sample, shared, copies, int(asked_E.sum()))
        example.weight_C = np.array(weights)
        return example

    def normalisers(self, pack: Pack) -> dict[str, float]:
        """As `Objective.normalisers`."""
        return normaliser_shares(pack, self.config)

    def loss(self, model: nn.Module, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """Loss of one pack: cross-entropy of masked tokens, each / (1 - kappa(t)), as in LLaDA, and the image loss."""
        return score(model(pack.inputs), pack, normalisers, self.config, self.model)

    def sampler(self, model: OneFlowModel) -> MaskedSampler:
        """As `Objective.sampler`."""
        return MaskedSampler(model, bos_id=self.tokenizer.bos_id, image_id=self.tokenizer.image_id)

    def _filled(self, piece: Piece) -> Piece:
        """A text that is asked for, at its fixed length; longer ones are cut."""
        if piece.kind != TOKEN or piece.prompt:
            return piece
        tokens = list(piece.tokens)[: self.config.masked_length]
        end = [self.tokenizer.bos_id] * (self.config.masked_length - len(tokens))
        return replace(piece, tokens=tokens + end)

    def _copy(
        self,
        task: Task,
        clean: Elements,
        masked_E: np.ndarray,
        clock: float,
        sample: Sample,
        rng: np.random.Generator,
    ) -> Copy:
        shown_E = np.where(masked_E, self.model.mask_id, clean.token_E)
        seen = replace(clean, token_E=shown_E, slot_E=masked_E)
        images = int((clean.kind_E == IMAGE).sum())
        patches = self._canvas.noised(
            task, sample, np.arange(images), self._canvas.image_times(images, rng), rng
        )
        slots = np.arange(int(masked_E.sum()))
        return Copy(seen, np.ones_like(slots), slots, clean.token_E[masked_E], patches, clock)
