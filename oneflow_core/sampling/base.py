"""What the samplers share: a running batch is stepped until it is done, or as long as documents come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from oneflow_core.model.inputs import ModelOutputs
from oneflow_core.model.oneflow import OneFlowModel
from oneflow_core.sampling.forward import Batch, build_batch
from oneflow_core.sampling.growing import Growing
from oneflow_core.sampling.prefix import PrefixCache
from oneflow_core.sampling.types import Generation, Reencode, Request, SamplerConfig

S = TypeVar("S", bound=Growing)


class Sampler(ABC, Generic[S]):
    """Generates documents with a trained model, whatever its objective.

    Every document has its own random stream and its own clock, so its result depends neither on what else is in the
    batch nor on when it joined, up to the floating-point differences that batching makes inside the network.
    """

    def __init__(
        self, model: OneFlowModel, *, bos_id: int, image_id: int, reencode: Reencode | None = None
    ) -> None:
        self.model, self.bos_id, self.image_id, self.reencode = model, bos_id, image_id, reencode

    @abstractmethod
    def empty(self, config: SamplerConfig) -> S:
        """A batch without documents."""

    @abstractmethod
    def step(self, state: S) -> None:
        """One pass of the network for all that need one, and what follows from it."""

    def begin(self, config: SamplerConfig) -> S:
        """A running batch, which documents may `join` and be left out of (`keep`) between its steps.

        Raises:
            ValueError: `config.reencode` for a sampler that was given no way from latents to features.
        """
        state = self.empty(config)
        if config.prefix_cache and self.model.config.prompt_attention == "prefix":
            state.prefixes = PrefixCache(self.model)
        return state

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        config: SamplerConfig | None = None,
        observe: Callable[[S], None] | None = None,
    ) -> list[Generation]:
        """Runs all requests together until each is done.

        Args:
            requests: ragged prompts and targets, any mixture.
            config: shared by the batch.
            observe: called with the running state after every pass.

        Raises:
            ValueError: as `begin`; a target that the objective cannot make.
        """
        state = self.begin(config or SamplerConfig())
        state.join(requests)
        while state.active_B.any():
            self.step(state)
            if observe:
                observe(state)
        return state.finish()

    def see(self, state: S) -> tuple[Batch, ModelOutputs]:
        """A pass over the documents that are due."""
        prefixes = state.prefixes
        if prefixes:
            prefixes.fill(state)
        batch = build_batch(state, next(self.model.parameters()).device, prefixes)
        outputs = self.model(batch.inputs, batch.cache) if prefixes else self.model(batch.inputs)
        state.passes_B = state.passes_B + state.due_B
        return batch, outputs
