"""AdamW over sharded parameters, its gradient norm and the moving average, on each rank's own pieces.

Pieces of different ranks are disjoint, so element-wise work needs no communication and runs on plain local tensors:
for small models the bookkeeping of distributed tensors costs more than the arithmetic.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workflows.training.config import OptimiserSettings
from workflows.training.parallel import local


class Optimiser:
    """AdamW with global-norm clipping, and an exponential moving average of the weights.

    Matrices decay; norms, biases, embeddings and other vectors do not.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings) -> None:
        self._settings = settings
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._local = {name: nn.Parameter(local(p.detach())) for name, p in self._named.items()}
        kept = _undecayed(model)
        groups = [
            {
                "params": [p for n, p in self._local.items() if n not in kept],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for n, p in self._local.items() if n in kept], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
        )
        self._average = {name: p.detach().clone() for name, p in self._named.items()}
        self._moments = {
            kind: {name: torch.zeros_like(p.detach()) for name, p in self._named.items()}
            for kind in ("exp_avg", "exp_avg_sq")
        }
        self.set_steps(0)

    @property
    def average(self) -> dict[str, Tensor]:
        """The moving average, sharded as the parameters are."""
        return self._average

    def tensors(self) -> dict[str, Tensor]:
        """All state, sharded, by name; writing into it changes the state. Steps are set by `set_steps`."""
        held = {f"model.{name}": p.detach() for name, p in self._named.items()}
        held |= {f"ema.{name}": t for name, t in self._average.items()}
        for kind, moments in self._moments.items():
            held |= {f"{kind}.{name}": t for name, t in moments.items()}
        return held

    def set_steps(self, steps: int) -> None:
        """Point Adam at the moments, as after `steps` steps."""
        for name, p in self._local.items():
            moments = {kind: local(held[name]) for kind, held in self._moments.items()}
            self._adam.state[p] = {"step": torch.tensor(float(steps), device=p.device), **moments}

    @torch.no_grad()
    def step(self, lr: float, ema_decay: float) -> Tensor:
        """Clip, step, average, and drop the gradients; returns the norm before clipping (no host sync)."""
        for name, p in self._named.items():
            self._local[name].grad = None if p.grad is None else local(p.grad)
            p.grad = None
        norm = self._clip()
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        averages = [local(t) for t in self._average.values()]
        torch._foreach_lerp_(averages, [p.detach() for p in self._local.values()], 1 - ema_decay)
        return norm

    def _clip(self) -> Tensor:
        grads = [p.grad for p in self._local.values() if p.grad is not None]
        squares = torch.stack([n.square() for n in torch._foreach_norm(grads)]).sum()
        dist.all_reduce(squares)
        norm = squares.sqrt()
        torch._foreach_mul_(grads, (self._settings.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm


def _undecayed(model: nn.Module) -> set[str]:
    """Names of parameters without weight decay: vectors, and tables of embeddings."""
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return tables | {name for name, p in model.named_parameters() if p.ndim < 2}
