"""The OneFlow objective: insertion-only Edit Flow for text and Flow Matching for images (paper section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oneflow_core.flows.insertion import deletion_loss, insertion_terms, left_neighbours
from oneflow_core.flows.schedule import Schedule, hazard
from oneflow_core.flows.times import draw_times
from oneflow_core.layout import IMAGE, TOKEN, Elements
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.objectives.canvas import Canvas, Copy, image_error, image_part, normaliser_shares
from oneflow_core.objectives.config import ObjectiveConfig
from oneflow_core.objectives.protocol import LossOutput, Normalisers
from oneflow_core.objectives.spurious import labels, spoil
from oneflow_core.objectives.tasks import Task, choose_task
from oneflow_core.packing import Example, Pack
from oneflow_core.sampling.sampler import InsertionSampler

if TYPE_CHECKING:
    from oneflow_core.data.shard import Sample
    from oneflow_core.model import OneFlowModel
    from oneflow_core.tokenizer import Tokenizer


NO_IMAGES = np.zeros(0, np.int64)


class OneFlowObjective:
    """Deletes elements of a document and asks what is missing where; noises its images and asks where they flow."""

    def __init__(self, config: ObjectiveConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.schedule = config.build_schedule()
        self._canvas = Canvas(config, model, tokenizer)
        specials = [tokenizer.bos_id, tokenizer.image_id]
        self._words = np.setdiff1d(np.arange(tokenizer.vocab_size), specials)

    def corrupt(self, sample: Sample, rng: np.random.Generator, schedule: Schedule | None = None) -> Example:
        """As `Objective.corrupt`."""
        schedule = schedule or self.schedule
        task = choose_task(sample.document, self.config.mixture, rng)
        shared, clean = self._canvas.elements(task, self._canvas.pieces(task))
        copies = [self._copy(task, clean, sample, schedule, rng) for _ in range(self.config.copies)]
        targets = int(np.count_nonzero(~clean.prompt_E & (clean.kind_E == TOKEN)))
        example = self._canvas.example(task, sample, shared, copies, targets)
        example.weight_C = np.array(
            [self._weight(c.clock, schedule, n) for c, n in zip(copies, _lengths(example), strict=True)]
        )
        return example

    def normalisers(self, pack: Pack) -> dict[str, float]:
        """As `Objective.normalisers`."""
        return normaliser_shares(pack, self.config)

    def loss(self, model: nn.Module, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """Loss of one pack: [CE + Poisson + BCE] / text normaliser + w * mean squared image error.

        Where counts are free: [CE + BCE of pi + BCE of deletion] instead. By default a batch-global normaliser
        replaces the literal 1/n of eq. 7, whose variance is ruinous (METHOD 7.3).
        """
        return self.score(model(pack.inputs), pack, normalisers)

    def score(self, outputs: ModelOutputs, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """`loss` for outputs that are there already."""
        if outputs.nll_K is None or outputs.pi_logit_S is None or outputs.rate_S is None:
            raise ValueError(
                "the outputs lack counts or losses of (slot, token) pairs; give a oneflow model a pack that "
                "oneflow_core.packing.collate made"
            )
        terms = insertion_terms(
            outputs.pi_logit_S,
            outputs.rate_S,
            pack.count_S,
            outputs.nll_K,
            pack.weight_S,
            pack.weight_K,
            self.model.counts,
        )
        text = 1 / max(normalisers["text"], 1.0)
        parts = {"tokens": terms.tokens * text}
        if self.model.counts != "free":
            parts["rate"] = terms.rate * text
        parts["zero"] = terms.zero * text
        error_N = image_error(outputs, pack, self.config, self.model)
        parts["image"] = image_part(error_N, pack, normalisers, self.config)
        if outputs.delete_logit_S is not None and pack.spurious_S is not None:
            parts["delete"] = deletion_loss(outputs.delete_logit_S, pack.spurious_S, pack.weight_S) * text
        total = torch.stack(list(parts.values())).sum()
        if self.model.counts != "free":
            parts["rate_regret"] = terms.rate_regret * text
        return LossOutput(
            total,
            {k: v.detach() for k, v in parts.items()},
            outputs.nll_K.detach(),
            error_N.detach(),
            outputs.pi_logit_S.detach(),
            None if self.model.counts == "free" else outputs.rate_S.detach(),
        )

    def sampler(self, model: OneFlowModel) -> InsertionSampler:
        """As `Objective.sampler`."""
        return InsertionSampler(model, bos_id=self.tokenizer.bos_id, image_id=self.tokenizer.image_id)

    def _copy(
        self, task: Task, clean: Elements, sample: Sample, schedule: Schedule, rng: np.random.Generator
    ) -> Copy:
        """One corruption: which elements are there at a time, and what is missing."""

        def free(count: int) -> NDArray[np.float64]:
            return self._canvas.image_times(count, rng)

        image_E, text_clean = clean.kind_E == IMAGE, task.text_clean
        times = draw_times(task.times, schedule, image_E, clean.prompt_E, free, rng, text_clean=text_clean)
        keep_E, spurious_E = times.keep_E, None
        if self.model.counts == "free":
            there = float(schedule.kappa(np.array(min(1.0, times.text))))
            clean, keep_E, spurious_E = spoil(clean, keep_E, self.config.spurious * there, self._words, rng)
        kept = clean.take(keep_E)
        if task.reencoded:
            complete_E = kept.kind_E == IMAGE
            complete_E[complete_E] = times.image_time_I[kept.block_E[complete_E]] >= 1
            kept = self._canvas.as_read(task, kept, complete_E)
        present = kept.block_E[kept.kind_E == IMAGE] if len(times.image_I) else NO_IMAGES
        patches = self._canvas.noised(task, sample, present, times.image_time_I, rng)
        spurious_S = None if spurious_E is None else labels(kept, spurious_E[keep_E])
        return Copy(kept, *_missing(clean, keep_E, kept), patches, times.text, spurious_S)

    def _weight(self, clock: float, schedule: Schedule, length: int) -> float:
        """Weight of a document's text loss, `length` being its tokens as corrupted."""
        weight = 1.0
        if clock > 1:
            weight = self.config.complete_weight
        elif self.config.time_weight == "hazard":
            weight = min(self.config.time_weight_cap, float(hazard(schedule, np.array(clock))))
        return weight / length if self.config.text_normaliser == "length" else weight


def _lengths(example: Example) -> list[int]:
    """Tokens of each copy with what it shares."""
    if len(example.clock_C) == 1:
        return [example.length]
    copy_T = example.layout.copy_T
    shared = np.count_nonzero(copy_T < 0)
    return (np.bincount(copy_T[copy_T >= 0], minlength=len(example.clock_C)) + shared).tolist()


def _missing(
    clean: Elements, keep_E: NDArray[np.bool_], kept: Elements
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts of missing elements by slot, and the (slot, token) pairs of all of them."""
    rank_E = kept.slot_E.cumsum()
    pair_slot_K = rank_E.take(left_neighbours(keep_E)) - 1
    count_S = np.bincount(pair_slot_K, minlength=int(rank_E[-1]))
    return count_S, pair_slot_K, clean.token_E.take((~keep_E).nonzero()[0])
