"""The sampler: one forward pass a step moves every image and fires every gap (paper Algorithms 1-2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.insertion import fire_probability
from oneflow_core.flows.schedule import arrival_probability, build_schedule
from oneflow_core.layout import TOKEN
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.sampling.base import Sampler
from oneflow_core.sampling.documents import BoolArray
from oneflow_core.sampling.draw import draw, first
from oneflow_core.sampling.forward import Batch
from oneflow_core.sampling.state import Gaps, State, Words
from oneflow_core.sampling.types import SamplerConfig

SHORTEST = 4
"""An adaptive step is at least this part of a whole one, so that passes stay bounded."""


class InsertionSampler(Sampler[State]):
    """Generates documents with a trained model; at most 2 * steps + flush passes a document (5 * steps if adaptive)."""

    def empty(self, config: SamplerConfig) -> State:
        """As `Sampler.empty`."""
        return State([], config, self.model.config, self.bos_id, self.image_id, self.reencode)

    @torch.inference_mode()
    def step(self, state: State) -> None:
        """As `Sampler.step`; documents that did not change are not shown to a network that is blind to the time.

        They take their next steps at once instead, until they change, so that every pass has all documents.
        """
        if state.due_B.any():
            batch, outputs = self.see(state)
            self._keep_gaps(state, batch, outputs)
            state.changed_B[state.move_images(batch.image_I, batch.full_images, batch.inputs, outputs)] = True
        self._fire(state, state.active_B)
        while (same_B := state.active_B & ~state.changed_B).any():
            self._fire(state, same_B)
        state.step += 1

    def _keep_gaps(self, state: State, batch: Batch, outputs: ModelOutputs) -> None:
        """What the pass said of each document's gaps; the documents are no longer changed."""
        due_B = state.due_B
        document_S = state.elements.document_E[batch.slot_element_S]
        sizes_B = np.bincount(document_S, minlength=len(state.requests))
        sizes, starts = sizes_B.tolist(), (np.cumsum(sizes_B) - sizes_B).tolist()
        assert outputs.pi_logit_S is not None and outputs.rate_S is not None
        missing = batch.guided(-outputs.pi_logit_S).cpu().split(sizes)
        rate = batch.guided(outputs.rate_S.log()).exp().clamp(min=1).cpu().split(sizes)
        words = Words(outputs, batch.inputs.slot_S.device, batch.guidance_S)
        delete: tuple[Tensor, ...] | None = None
        if outputs.delete_logit_S is not None:
            delete = batch.guided(outputs.delete_logit_S).cpu().split(sizes)
        for b in np.flatnonzero(due_B).tolist():
            state.gaps_B[b] = Gaps(missing[b], rate[b], words, starts[b], delete[b] if delete else None)
        state.changed_B[due_B] = self.model.config.text_time

    def _fire(self, state: State, who_B: BoolArray) -> None:
        """A step of the documents `who_B`: inserts at most one element into every gap, and takes out what does not
        belong where counts are free.

        All at once, decided on the state before the step: an element inserted now is judged at the next pass.
        """
        element_S = np.flatnonzero(who_B[state.elements.document_E] & state.elements.slot_E)
        document_S = state.elements.document_E[element_S]
        then_B = np.where(who_B, self._next_text_times(state), state.text_time_B)
        edits_B = np.zeros(len(state.requests), np.int64)
        if len(element_S):
            gaps = [g for b in np.unique(document_S).tolist() if (g := state.gaps_B[b]) is not None]
            rho_S = self._arrivals(state, document_S, then_B)
            at = np.flatnonzero(self._fires(state, document_S, gaps, rho_S))
            token = self._tokens(state, document_S[at], _logits(gaps, at)) if len(at) else at
            gone = np.flatnonzero(self._deletions(state, element_S, gaps, rho_S))
            state.insert(element_S[at], token)
            state.delete(element_S[gone] + np.searchsorted(at, gone))
            edits_B = np.bincount(document_S[np.r_[at, gone]], minlength=len(state.requests))
        for b in np.flatnonzero(edits_B).tolist():
            state.changed_B[b], state.gaps_B[b] = True, None
        flushing = (state.text_time_B >= 1) & who_B
        state.flush_B = np.where(
            flushing, np.where(edits_B > 0, np.maximum(state.flush_B - 1, 0), 0), state.flush_B
        )
        state.text_time_B = then_B
        state.age_B += who_B

    def _next_text_times(self, state: State) -> NDArray[np.float64]:
        """Each document's text time after this step; the same while it waits for images.

        Shorter where `adaptive` finds a gap that is due more than one.
        """
        now_B = state.text_time_B
        then_B = np.where(state.waiting_B, now_B, state.next_time(now_B, state.steps_B))
        if not state.config.adaptive:
            return then_B
        schedule = build_schedule(state.config.schedule)
        kappa_B = schedule.kappa(now_B)
        least_B = state.next_time(now_B, SHORTEST * state.steps_B)
        for b, gaps in enumerate(state.gaps_B):
            if gaps is None or not (gaps.missing_S > 0).any():
                continue
            most = float(gaps.rate_S[gaps.missing_S > 0].max())
            due = schedule.inverse(kappa_B[b] + (1 - kappa_B[b]) / most)
            then_B[b] = min(then_B[b], max(due, least_B[b]))
        return then_B

    def _arrivals(self, state: State, document_S: NDArray[np.int64], then_B: NDArray[np.float64]) -> Tensor:
        """rho of each slot's document in this step, float32."""
        time_S = state.text_time_B[document_S]
        schedule = build_schedule(state.config.schedule)
        return torch.from_numpy(arrival_probability(schedule, time_S, then_B[document_S] - time_S)).float()

    def _fires(
        self, state: State, document_S: NDArray[np.int64], gaps: Sequence[Gaps], rho_S: Tensor
    ) -> NDArray[np.bool_]:
        pi = torch.sigmoid(-torch.cat([g.missing_S for g in gaps]))
        rate = torch.cat([g.rate_S for g in gaps])
        probability = fire_probability(pi, rate, rho_S, state.config.fire).numpy()
        draws = self._draws(state, document_S)
        flushing = state.text_time_B[document_S] >= 1
        fire = np.where(flushing, (pi.numpy() < 0.5) & (state.flush_B[document_S] > 0), draws < probability)
        room_B = state.max_tokens_B - state.generated_tokens()
        return first(fire, document_S, room_B)

    def _deletions(
        self, state: State, element_S: NDArray[np.int64], gaps: Sequence[Gaps], rho_S: Tensor
    ) -> NDArray[np.bool_]:
        """Which slots' own elements are taken out: generated tokens, with probability rho d; at flush where d > 1/2."""
        logits = [g.delete_S for g in gaps if g.delete_S is not None]
        if not logits:
            return np.zeros(len(element_S), bool)
        e, wrong = state.elements, torch.sigmoid(torch.cat(logits))
        document_S = e.document_E[element_S]
        draws = self._draws(state, document_S)
        flushing = state.text_time_B[document_S] >= 1
        flush = (wrong.numpy() > 0.5) & (state.flush_B[document_S] > 0)
        out: NDArray[np.bool_] = np.where(flushing, flush, draws < (wrong * rho_S).numpy())
        return out & ~e.prompt_E[element_S] & (e.kind_E[element_S] == TOKEN)

    def _draws(self, state: State, document_S: NDArray[np.int64]) -> NDArray[np.float64]:
        """A uniform number for each entry, from its document's own stream."""
        sizes = np.bincount(document_S, minlength=len(state.requests))
        return np.concatenate([rng.random(n) for rng, n in zip(state.rng_B, sizes, strict=True)])

    def _tokens(self, state: State, document_F: NDArray[np.int64], logits_FV: Tensor) -> NDArray[np.int64]:
        """One token for each firing gap; an anchor beyond a document's images is not to be drawn."""
        images_B = np.bincount(state.image_document, minlength=len(state.requests))
        room_B = state.max_images_B - images_B
        temperature_F = state.temperature_B[document_F]
        logits_FV[:, self.bos_id] = -torch.inf
        plain_FV = logits_FV.clone()
        plain_FV[:, self.image_id] = -torch.inf
        draws = self._draws(state, document_F)
        with_images = torch.where(torch.from_numpy(room_B[document_F] > 0)[:, None], logits_FV, plain_FV)
        token = draw(with_images, draws, state.config, temperature_F)
        over = (token == self.image_id) & ~first(token == self.image_id, document_F, room_B)
        if over.any():
            token = token.copy()
            token[over] = draw(
                plain_FV[torch.from_numpy(over)], draws[over], state.config, temperature_F[over]
            )
        return token


def _logits(gaps: Sequence[Gaps], at: NDArray[np.int64]) -> Tensor:
    """Vocabulary logits of the slots `at` of all these gaps, float32 on the CPU; they may come of several passes."""
    sizes = [len(g.missing_S) for g in gaps]
    row_S = np.concatenate([g.first + np.arange(n) for g, n in zip(gaps, sizes, strict=True)])
    said = {id(g.words): g.words for g in gaps}
    if len(said) == 1:
        return gaps[0].words.take(row_S[at]).float().cpu().clone()
    source_F = np.repeat([id(g.words) for g in gaps], sizes)[at]
    order = np.argsort(source_F, kind="stable")
    parts = [words.take(row_S[at[source_F == name]]) for name, words in sorted(said.items())]
    return torch.cat(parts).float().cpu()[torch.from_numpy(np.argsort(order))]
