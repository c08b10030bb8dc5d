"""What training needs of an objective, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

from oneflow_core.flows.schedule import Schedule
from oneflow_core.packing import Example, Pack

if TYPE_CHECKING:
    from oneflow_core.data.shard import Sample
    from oneflow_core.model import OneFlowModel
    from oneflow_core.objectives.config import ObjectiveConfig
    from oneflow_core.sampling import Sampler

Normalisers = Mapping[str, float]
"""Sums over the global batch that the loss is divided by: `text` as the config says, `image` patches in flow."""


@dataclass
class LossOutput:
    """The loss of one pack."""

    total: Tensor
    """Already divided by the global normalisers; sum it over packs and ranks."""
    parts: dict[str, Tensor]
    """Detached shares of `total` by part: tokens, image, and what else the objective has; `rate_regret` is for
    monitoring and no share."""
    nll_K: Tensor
    """Detached cross-entropy of every element to predict, as `Pack.clock_K` names them."""
    error_N: Tensor
    """Detached squared error of every patch before weights, in flow or not (`Pack.flow_N`)."""
    pi_logit_S: Tensor | None = None
    """Detached logit of P(gap misses nothing); None where the objective counts nothing."""
    rate_S: Tensor | None = None
    """Detached lambda_nonzero; None where counts are not predicted."""


class Objective(Protocol):
    """Corrupts documents, scores the network's answer, and generates with it.

    One instance serves any number of loader threads.
    """

    config: ObjectiveConfig

    def corrupt(self, sample: Sample, rng: np.random.Generator, schedule: Schedule | None = None) -> Example:
        """A training example of one document, a pure function of its arguments.

        `schedule` is kappa where it changes while training goes on; None: the config's own.

        Raises:
            ValueError: a latent or feature array that does not fit the model.
        """
        ...

    def normalisers(self, pack: Pack) -> dict[str, float]:
        """This pack's share of the global normalisers; sum it over the global batch before `loss`."""
        ...

    def loss(self, model: nn.Module, pack: Pack, normalisers: Normalisers) -> LossOutput:
        """Loss of one pack."""
        ...

    def sampler(self, model: OneFlowModel) -> Sampler[Any]:
        """What generates documents with a network trained under this objective."""
        ...
