"""Muon (Jordan et al. 2024): steps along the orthogonalised momentum of a matrix; and the encoders' optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that draws singular values to about 1 (Jordan et al. 2024, "Muon")."""
ROUNDS = 5
RMS = 0.2
"""Root mean square of a step at rate 1, as AdamW's (Liu et al. 2025, "Muon is scalable"): one rate serves both."""


class LayerMuon:
    """Muon with Nesterov momentum on weights taken as [out, in*h*w], AdamW on embeddings, norms and biases."""

    def __init__(self, model: nn.Module, rate: float, decay: float, momentum: float = 0.9) -> None:
        self.model, self.rate, self.decay, self.momentum = model, rate, decay, momentum
        layers = [
            m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.shape[0] > 8
        ]
        self.filters = [layer.weight for layer in layers]
        chosen = {id(p) for p in self.filters}
        self.speeds = [torch.zeros_like(p) for p in self.filters]
        self.adam = torch.optim.AdamW(
            [p for p in model.parameters() if id(p) not in chosen],
            lr=rate,
            betas=(0.9, 0.99),
            weight_decay=decay,
        )

    def set_rate(self, rate: float) -> None:
        """Sets the rate of the steps to come."""
        self.rate = self.adam.param_groups[0]["lr"] = rate

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients, which are then dropped."""
        for weight, speed in zip(self.filters, self.speeds, strict=True):
            if weight.grad is None:
                continue
            speed.lerp_(weight.grad, 1 - self.momentum)
            ahead = torch.lerp(weight.grad, speed, self.momentum).flatten(1)
            step = direction(ahead)
            weight.mul_(1 - self.rate * self.decay).sub_(step.reshape_as(weight), alpha=self.rate)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Matrices [..., m, n] with the singular vectors of `matrix` and singular values near 1 (0.7 to 1.2).

    Tiny singular values stay small. The rounds run on the small Gram matrix only: with A = X X^T and P a polynomial
    in A, (P X)(P X)^T = P A P. In the matrix's own dtype: bf16, as torch.optim.Muon takes, is slow on most CPUs.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalise(matrix.mT).mT
    scaled = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    gram = scaled @ scaled.mT
    a, b, c = NEWTON_SCHULZ
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    total = identity.expand_as(gram)
    for _ in range(ROUNDS):
        factor = a * identity + b * gram + c * gram @ gram
        total, gram = factor @ total, factor @ gram @ factor
    return total @ scaled


def direction(matrix: Tensor) -> Tensor:
    """The step of Muon at rate 1 for momenta [..., m, n]: orthogonalised, with the root mean square of AdamW's."""
    return orthogonalise(matrix) * (RMS * max(matrix.shape[-2:]) ** 0.5)
