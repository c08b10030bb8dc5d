"""The sampler: one forward pass a step moves every image and fires every gap (paper Algorithms 1-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.image import euler_step, velocity
from oneflow_core.flows.insertion import fire_probability
from oneflow_core.flows.schedule import Schedule, arrival_probability, build_schedule
from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.sampling.forward import Batch, build_batch
from oneflow_core.sampling.state import State
from oneflow_core.sampling.types import Generation, Request, SamplerConfig


class Sampler:
    """Generates documents with a trained model.

    Every document has its own random stream, so its result is the same in any batch, up to the floating-point
    differences that batching makes inside the network.
    """

    def __init__(self, model: OneFlowModel, *, bos_id: int, image_id: int, schedule: str = "linear") -> None:
        self.model, self.bos_id, self.image_id = model, bos_id, image_id
        self.schedule: Schedule = build_schedule(schedule)

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        config: SamplerConfig | None = None,
        observe: Callable[[State], None] | None = None,
    ) -> list[Generation]:
        """Runs all requests together until each is done; at most 2 * steps + flush passes.

        Args:
            requests: ragged prompts and targets, any mixture.
            config: shared by the batch.
            observe: called with the running state after every pass.
        """
        config = config or SamplerConfig()
        state = State(requests, config, self.model.config, self.bos_id, self.image_id)
        device = next(self.model.parameters()).device
        while state.active_B.any():
            batch = build_batch(state, device)
            outputs = self.model(batch.inputs)
            state.passes_B += state.active_B
            self._move_images(state, batch, outputs)
            self._fire(state, batch, outputs)
            state.step += 1
            if observe:
                observe(state)
        return state.finish()

    def _move_images(self, state: State, batch: Batch, outputs: ModelOutputs) -> None:
        """One Euler step of every image in flow, guided against the image alone."""
        moving = state.images_in_flow
        if not len(moving):
            return
        step = 1 / state.config.steps
        sizes = [len(state.patches[i]) for i in batch.image_I]
        eps = min(self.model.config.clean_eps, step)
        time_N, noisy_ND = batch.inputs.time_N, batch.inputs.noisy_ND
        v_ND = velocity(outputs.image_ND.float(), noisy_ND, time_N, self.model.config.prediction, eps)
        full_v = dict(zip(batch.image_I[: batch.full_images].tolist(), v_ND.split(sizes), strict=False))
        weak_v = dict(
            zip(
                batch.image_I.tolist()[batch.full_images :],
                v_ND.split(sizes)[batch.full_images :],
                strict=True,
            )
        )
        for i in moving.tolist():
            v = full_v[i]
            if i in weak_v:
                v = weak_v[i] + state.config.image_guidance * (v - weak_v[i])
            t = torch.full((len(v),), state.image_time[i])
            state.patches[i], t = euler_step(state.patches[i], v.cpu(), t, torch.full_like(t, step))
            state.image_time[i] = float(t[0]) if float(t[0]) < 1 - 1e-6 else 1.0

    def _fire(self, state: State, batch: Batch, outputs: ModelOutputs) -> None:
        """Inserts at most one element into every gap, all at once, decided on the state before the step."""
        count = batch.full_slots
        step = 1 / state.config.steps
        if count:
            document_S = state.elements.document_E[batch.slot_element_S]
            fire_S = self._fires(state, document_S, outputs, count, step)
            at = np.flatnonzero(fire_S)
            logits = _guided(outputs.logits_RV, count, state.config.text_guidance)[at]
            token = self._tokens(state, document_S[at], logits)
            state.insert(batch.slot_element_S[at], token)
            fired_B = np.bincount(document_S[at], minlength=len(state.requests))
        else:
            fired_B = np.zeros(len(state.requests), np.int64)
        flushing = state.text_time_B >= 1
        state.flush_B = np.where(
            flushing, np.where(fired_B > 0, np.maximum(state.flush_B - 1, 0), 0), state.flush_B
        )
        state.text_time_B = np.minimum(1.0, state.text_time_B + step)
        state.text_time_B[state.text_time_B > 1 - 1e-9] = 1.0

    def _fires(
        self, state: State, document_S: NDArray[np.int64], outputs: ModelOutputs, count: int, step: float
    ) -> NDArray[np.bool_]:
        w = state.config.text_guidance
        missing = _guided(-outputs.pi_logit_S, count, w)
        rate = _guided(outputs.rate_S.log(), count, w).exp().clamp(min=1)
        time_S = state.text_time_B[document_S]
        rho = torch.from_numpy(arrival_probability(self.schedule, time_S, np.full(count, step))).float()
        pi = torch.sigmoid(-missing).cpu()
        probability = fire_probability(pi, rate.cpu(), rho, state.config.fire).numpy()
        sizes = np.bincount(document_S, minlength=len(state.requests))
        draws = np.concatenate([rng.random(n) for rng, n in zip(state.rng_B, sizes, strict=True)])
        flushing = time_S >= 1
        fire = np.where(flushing, (pi.numpy() < 0.5) & (state.flush_B[document_S] > 0), draws < probability)
        room_B = state.config.max_tokens - state.generated_tokens()
        return _first(fire, document_S, room_B)

    def _tokens(self, state: State, document_F: NDArray[np.int64], logits_FV: Tensor) -> NDArray[np.int64]:
        """One token for each firing gap; an anchor beyond a document's images is not to be drawn."""
        images_B = np.bincount(np.array(state.image_document, int), minlength=len(state.requests))
        allowed_B = np.array(
            [state.config.max_images if r.target == "document" else 0 for r in state.requests]
        )
        room_F = (allowed_B - images_B)[document_F]
        logits_FV = logits_FV.float().cpu().clone()
        logits_FV[:, self.bos_id] = -torch.inf
        plain_FV = logits_FV.clone()
        plain_FV[:, self.image_id] = -torch.inf
        sizes = np.bincount(document_F, minlength=len(state.requests))
        draws = np.concatenate([rng.random(n) for rng, n in zip(state.rng_B, sizes, strict=True)])
        with_images = torch.where(torch.from_numpy(room_F > 0)[:, None], logits_FV, plain_FV)
        token = _draw(with_images, draws, state.config)
        over = (token == self.image_id) & ~_first(token == self.image_id, document_F, allowed_B - images_B)
        return np.where(over, _draw(plain_FV, draws, state.config), token)


def _guided(values: Tensor | None, full: int, w: float) -> Tensor:
    """(1 + w) of the full copies less w of the weak ones, which follow in the same order (METHOD section 4)."""
    assert values is not None
    return values[:full] if not w else (1 + w) * values[:full] - w * values[full : 2 * full]


def _first(
    chosen: NDArray[np.bool_], document: NDArray[np.int64], room_B: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Of the chosen, the first `room_B[b]` of each document b; `document` ascends."""
    rank: NDArray[np.int64] = np.cumsum(chosen) - chosen
    starts = np.searchsorted(document, np.arange(len(room_B)))
    base = np.r_[rank, rank[-1] + chosen[-1] if len(rank) else 0][np.minimum(starts, len(rank))]
    return chosen & (rank - base[document] < room_B[document])


def _draw(logits_FV: Tensor, draws_F: NDArray[np.float64], config: SamplerConfig) -> NDArray[np.int64]:
    """Inverse-CDF sampling with temperature and top-p: one uniform number a row."""
    if config.temperature == 0 or not len(draws_F):
        return logits_FV.argmax(-1).numpy()
    probability, token = (logits_FV / config.temperature).softmax(-1).double().sort(dim=-1, descending=True)
    mass = probability.cumsum(-1)
    probability = probability.masked_fill(mass - probability >= config.top_p, 0.0)
    mass = probability.cumsum(-1) / probability.sum(-1, keepdim=True)
    place = torch.searchsorted(mass, torch.from_numpy(draws_F)[:, None], right=True).clamp(
        max=mass.shape[-1] - 1
    )
    return token.gather(-1, place)[:, 0].numpy()
