"""Losses by time: where on its way from noise or nothing to data a modality is hard.

Shapes: X rows (missing tokens, gaps or patches), B bins of equal width of t in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneflow_core.objectives.protocol import LossOutput
from oneflow_core.packing import Pack

BINS = 5
CENTRES = tuple((i + 0.5) / BINS for i in range(BINS))
"""Times that the bins are named by."""


def by_time(time_X: Tensor, value_X: Tensor, weight_X: Tensor | None = None) -> Tensor:
    """Sums by bin of t = min(1, time): weights and weighed values, [2, B] float64 on their device. No host sync."""
    bin_X = (time_X.clamp(0, 1) * BINS).long().clamp_(max=BINS - 1)
    value_X = value_X.detach().double()
    weight_X = torch.ones_like(value_X) if weight_X is None else weight_X.double()
    both_2X = torch.stack([weight_X, weight_X * value_X])
    return both_2X.new_zeros(2, BINS).index_add_(1, bin_X, both_2X)


def loss_by_time(pack: Pack, out: LossOutput, *, text: bool = True) -> dict[str, Tensor]:
    """`by_time` of the parts of a pack's loss, where the loss lies; the pack may still lie on the CPU.

    text_ce: nats of a missing token; rate_regret: the Poisson loss of lambda less its minimum, of a gap that misses
    something; image_mse: squared error of a patch in flow. Means of rows, without the weights of the loss.

    Args:
        text: whether texts have a time under the objective.
    """

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(out.nll_K.device, non_blocking=True)

    found = {"image_mse": by_time(there(pack.inputs.time_N), out.error_N, there(pack.flow_N))}
    if text:
        found["text_ce"] = by_time(there(pack.clock_K), out.nll_K)
    if text and out.rate_S is not None:
        count_S = there(pack.count_S).double()
        regret_S = out.rate_S - count_S + torch.xlogy(count_S, count_S / out.rate_S)
        found["rate_regret"] = by_time(there(pack.clock_S), regret_S, count_S > 0)
    return found
