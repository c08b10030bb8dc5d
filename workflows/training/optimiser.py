"""AdamW and Muon over sharded parameters, the gradient's norm and the moving average, on each rank's own pieces.

Pieces of different ranks are disjoint, so element-wise work needs no communication and runs on plain local tensors:
for small models the bookkeeping of distributed tensors costs more than the arithmetic. Muon alone looks at whole
matrices; `workflows.training.muon` deals them out.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workflows.training.config import OptimiserSettings
from workflows.training.groups import Groups
from workflows.training.muon import Exchange
from workflows.training.parallel import local, shard_group


class Optimiser:
    """AdamW or Muon with global-norm clipping, and an exponential moving average of the weights.

    Matrices and convolutions decay; norms, biases, embeddings and other vectors do not. With Muon, the matrices of
    blocks (elements of a ModuleList) step along their orthogonalised momentum, all else by AdamW at the same rate.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings) -> None:
        self._settings = settings
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._local = {name: nn.Parameter(local(p.detach())) for name, p in self._named.items()}
        kept, turned = _undecayed(model), turned_matrices(model) if settings.kind == "muon" else set()
        self._turned = [name for name in self._named if name in turned]
        self._pieces = shard_group(model)
        self._exchange = Exchange([tuple(self._named[name].shape) for name in self._turned], self._pieces)
        stepped = {n: p for n, p in self._local.items() if n not in turned}
        groups = [
            {
                "params": [p for n, p in stepped.items() if n not in kept],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for n, p in stepped.items() if n in kept], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
        )
        self._average = {name: p.detach().clone() for name, p in self._named.items()}
        held = {"exp_avg": stepped, "exp_avg_sq": stepped, "momentum": turned}
        self._moments = {
            kind: {n: torch.zeros_like(p.detach()) for n, p in self._named.items() if n in names}
            for kind, names in held.items()
        }
        self.groups = Groups(list(self._named))
        self.group_norms = torch.zeros(len(self.groups.names))
        """Norms of the last gradient by `groups`, before clipping, over all ranks."""
        self.set_steps(0)

    @property
    def average(self) -> dict[str, Tensor]:
        """The moving average, sharded as the parameters are."""
        return self._average

    @torch.no_grad()
    def begin_average(self) -> None:
        """Begin the average anew at the parameters as they are."""
        for name, p in self._named.items():
            local(self._average[name]).copy_(local(p.detach()))

    def tensors(self) -> dict[str, Tensor]:
        """All state, sharded, by name; writing into it changes the state. Steps are set by `set_steps`."""
        held = {f"model.{name}": p.detach() for name, p in self._named.items()}
        held |= {f"ema.{name}": t for name, t in self._average.items()}
        for kind, moments in self._moments.items():
            held |= {f"{kind}.{name}": t for name, t in moments.items()}
        return held

    def set_steps(self, steps: int) -> None:
        """Point Adam at the moments, as after `steps` steps."""
        for name in self._moments["exp_avg"]:
            p = self._local[name]
            moments = {kind: local(self._moments[kind][name]) for kind in ("exp_avg", "exp_avg_sq")}
            self._adam.state[p] = {"step": torch.tensor(float(steps), device=p.device), **moments}

    @torch.no_grad()
    def step(
        self, lr: float, ema_decay: float, accepts: Callable[[Tensor], bool] = lambda norm: True
    ) -> Tensor:
        """Clip, step, average, and drop the gradients; returns the norm before clipping (no host sync of its own).

        Where `accepts` (all ranks alike) says no to that norm, the gradients are dropped and nothing else happens.
        """
        for name, p in self._named.items():
            self._local[name].grad = None if p.grad is None else local(p.grad)
            p.grad = None
        norm = self._clip()
        if accepts(norm):
            self._update(lr, ema_decay)
        for p in self._local.values():
            p.grad = None
        return norm

    def _update(self, lr: float, ema_decay: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        if self._turned:
            self._turn(lr)
        averages = [local(t) for t in self._average.values()]
        torch._foreach_lerp_(averages, [p.detach() for p in self._local.values()], 1 - ema_decay)

    @torch.no_grad()
    def weight_norms(self) -> Tensor:
        """Norms of the weights by `groups`. All ranks must call it."""
        squares = self.groups.squares({name: p.detach() for name, p in self._local.items()})
        dist.all_reduce(squares, group=self._pieces)
        return squares.sqrt()

    def _turn(self, lr: float) -> None:
        """Muon's step: p <- (1 - lr * decay) p - lr * direction(Nesterov momentum)."""
        pieces = [self._local[name].detach() for name in self._turned]
        grads = [_gradient(self._local[name]) for name in self._turned]
        speeds = [local(self._moments["momentum"][name]) for name in self._turned]
        torch._foreach_lerp_(speeds, grads, 1 - self._settings.momentum)
        steps = self._exchange.directions(torch._foreach_lerp(grads, speeds, self._settings.momentum))
        torch._foreach_mul_(pieces, 1 - lr * self._settings.weight_decay)
        torch._foreach_add_(pieces, steps, alpha=-lr)

    def _clip(self) -> Tensor:
        grads = {name: p.grad for name, p in self._local.items() if p.grad is not None}
        squares = self.groups.squares(grads)
        dist.all_reduce(squares, group=self._pieces)
        self.group_norms, norm = squares.sqrt(), squares.sum().sqrt()
        torch._foreach_mul_(list(grads.values()), (self._settings.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _undecayed(model: nn.Module) -> set[str]:
    """Names of parameters without weight decay: vectors, and tables of embeddings."""
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return tables | {name for name, p in model.named_parameters() if p.ndim < 2}


def turned_matrices(model: nn.Module) -> set[str]:
    """Names of what Muon steps: the matrices of blocks, without tables of embeddings."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    inside = {
        n for n, p in model.named_parameters() if any(n.startswith(f"{b}.") for b in blocks) and p.ndim == 2
    }
    return inside - _undecayed(model)
