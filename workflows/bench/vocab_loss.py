"""The token loss of gaps that miss something, beside logits at every position and torch's cross entropy.

Forward and backward of the vocabulary's matrix and the loss, each side in a fresh process, so that its peak memory is
its own. The states are texts under the linear schedule at t ~ U[0, 1]: of N tokens N/2 are kept, N/2 are missing, and
N/6 gaps miss some (METHOD 7.6).
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oneflow_core.flows.insertion import left_neighbours
from oneflow_core.model.config import ModelConfig
from oneflow_core.model.heads import InsertionHeads
from workflows.bench.child import Child
from workflows.bench.meters import cost
from workflows.bench.result import Result
from workflows.errors import OneFlowError

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Sizes:
    """What is trained on; `tokens` of clean text in `documents`."""

    vocabulary: int = 128_256
    width: int = 512
    tokens: int = 4096
    documents: int = 16


def run(runs: int, device: str = "cpu") -> Result:
    """MiB at the peak; `seconds` beside, CPU seconds of one thread or wall seconds of a GPU."""
    return measure(runs, Sizes(), device)


def measure(runs: int, sizes: Sizes, device: str) -> Result:
    """Both sides in turn; the same loss and gradients to 1e-5, or OneFlowError."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    differences = {"loss": 0.0, "hidden_gradient": 0.0, "weight_gradient": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(runs):
            for name, answers in found.items():
                target = f"{__name__}:side"
                arguments = {"name": name, "sizes": asdict(sizes), "device": device, "seed": seed}
                with Child(target, arguments) as child:
                    answers.append(child.ask(file=f"{folder}/{name}.npz"))
            apart = _apart(Path(folder))
            differences = {part: max(differences[part], apart[part]) for part in differences}
    seconds = {name: [answer["seconds"] for answer in answers] for name, answers in found.items()}
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    extra = {
        "seconds": medians | {"ratio": medians["ours"] / medians["peer"]},
        "differences": differences,
        "sizes": asdict(sizes) | {name: found["ours"][0][name] for name in ("slots", "rows", "pairs")},
        "device": device,
    }
    peaks = {name: [answer["peak_mib"] for answer in answers] for name, answers in found.items()}
    others = {f"{name}_seconds": values for name, values in seconds.items()}
    return Result(
        "vocab-loss", "MiB at the peak", peaks["ours"], peaks["peer"], ("torch", "numpy"), extra, others
    )


def side(name: str, sizes: dict[str, int], device: str, seed: int) -> Callable[[str], dict[str, Any]]:
    """One side, in its own process: the answer measures one step and writes its loss and gradients to a file."""
    torch.set_num_threads(1)
    loss = {"ours": gaps_alone, "peer": every_position}[name]
    _step(loss, Sizes(64, 8, 64, 2), device, 0)
    shape = Sizes(**sizes)
    heads, hidden_SD, slot_K, token_K = state(shape, device, seed)

    def answer(file: str) -> dict[str, Any]:
        with cost(device) as spent:
            total = loss(heads, hidden_SD, slot_K, token_K)
            total.backward()
        assert hidden_SD.grad is not None and heads.tokens.weight.grad is not None
        # A product with a fixed vector stands for the weight's gradient, whose every row enters it.
        probe = torch.randn(shape.width, generator=torch.Generator().manual_seed(1)).to(device)
        np.savez(
            file,
            loss=total.detach().double().cpu().numpy(),
            hidden_gradient=hidden_SD.grad.cpu().numpy(),
            weight_gradient=(heads.tokens.weight.grad @ probe).cpu().numpy(),
        )
        counts = {"slots": len(hidden_SD), "rows": len(slot_K.unique()), "pairs": len(slot_K)}
        return {"seconds": spent.seconds, "peak_mib": spent.peak_mib, **counts}

    return answer


def state(sizes: Sizes, device: str, seed: int) -> tuple[InsertionHeads, Tensor, Tensor, Tensor]:
    """Heads, the hidden states of all slots, and slot and token of everything that is missing."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    length = sizes.tokens // sizes.documents
    keep_E = rng.random((sizes.documents, length)) < rng.random((sizes.documents, 1))
    keep_E[:, 0] = True  # BOS
    dims = ModelConfig(vocab_size=sizes.vocabulary, width=sizes.width, layers=1, heads=1, kv_heads=1, ffn=1)
    heads = InsertionHeads(dims)
    torch.nn.init.normal_(heads.tokens.weight, std=0.05)
    slot_K = torch.from_numpy(left_neighbours(keep_E.ravel()))
    token_K = torch.from_numpy(rng.integers(0, sizes.vocabulary, len(slot_K)))
    hidden_SD = torch.randn(int(keep_E.sum()), sizes.width).to(device).requires_grad_()
    return heads.to(device), hidden_SD, slot_K.to(device), token_K.to(device)


def gaps_alone(heads: InsertionHeads, hidden_SD: Tensor, slot_K: Tensor, token_K: Tensor) -> Tensor:
    """Ours: logits at the gaps that miss something alone, as the model asks for them."""
    rows_R, row_K = slot_K.unique_consecutive(return_inverse=True)
    return heads.nll(hidden_SD.index_select(0, rows_R), row_K, token_K).sum()


def every_position(heads: InsertionHeads, hidden_SD: Tensor, slot_K: Tensor, token_K: Tensor) -> Tensor:
    """The peer: logits at every position, then the cross entropy of each missing token at its position."""
    logits_SV = heads.tokens(hidden_SD)
    return F.cross_entropy(logits_SV[slot_K], token_K, reduction="sum")


def _step(loss: Callable[..., Tensor], sizes: Sizes, device: str, seed: int) -> None:
    loss(*state(sizes, device, seed)).backward()


def _apart(folder: Path) -> dict[str, float]:
    """Largest difference of the sides, relative to the largest value; OneFlowError where it is over 1e-5."""
    ours, peer = (np.load(folder / f"{name}.npz") for name in ("ours", "peer"))
    apart = {
        part: float(np.abs(ours[part] - peer[part]).max() / np.abs(peer[part]).max()) for part in peer.files
    }
    for part, difference in apart.items():
        if not difference <= TOLERANCE:
            cause = f"the two sides differ by {difference:.1e}, more than {TOLERANCE}"
            raise OneFlowError(f"benchmark vocab-loss: {part}", cause, "mend InsertionHeads.nll")
    return apart
