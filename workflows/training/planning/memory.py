"""Bytes on one GPU, by part and by moment of a step.

What is held all the time is counted exactly from the shapes; activations are counted from what each operation of a
block keeps for its backward pass on a GPU in the eager mode (the residual stream D wide, H query and G key/value heads
of d, SwiGLU of F, a tokens in the pack's precision of b bytes).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.model.heads import LOGIT_ROWS
from workflows.training.blocks import blocks_of
from workflows.training.config import ComputeSettings, OptimiserSettings
from workflows.training.optimiser import turned_matrices
from workflows.training.planning.packs import PackShape

FP32 = 4
MOMENTS = ("loss", "backward", "step")
"""When memory may be fullest: between forward and backward; when the last gradients are summed; in the optimiser."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    held: Mapping[str, int]
    """All the time: parameters, moments, average."""
    passing: Mapping[str, Mapping[str, int]]
    """Beside it, by moment and part."""

    def at(self, moment: str) -> int:
        """Bytes in use at a moment."""
        return sum(self.held.values()) + sum(self.passing[moment].values())

    @property
    def peak_moment(self) -> str:
        """When it is fullest."""
        return max(MOMENTS, key=self.at)

    @property
    def peak(self) -> int:
        """The most in use."""
        return self.at(self.peak_moment)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run lies on its GPUs."""

    compute: ComputeSettings
    optimiser: OptimiserSettings
    packs: int
    """Packs of one worker in a step."""

    @property
    def shards(self) -> int:
        """Ranks that hold the model once."""
        return self.compute.workers // self.compute.replicas

    @property
    def width(self) -> int:
        """Bytes of a number in the passes."""
        return 2 if self.compute.precision == "bf16" else FP32

    def piece(self, parameter: nn.Parameter) -> int:
        """Bytes of the largest piece of a float32 tensor of this shape: FSDP2 cuts the first dimension in equal parts,
        the last ranks getting less."""
        rows = parameter.shape[0] if parameter.ndim else 1
        return -(-rows // self.shards) * (parameter.numel() // max(rows, 1)) * FP32


def memory_of(model: OneFlowModel, layout: Layout, pack: PackShape) -> Memory:
    """Bytes of the fullest GPU; `model` may lie on the meta device."""
    named = dict(model.named_parameters())
    pieces = {name: layout.piece(p) for name, p in named.items()}
    everything = sum(pieces.values())
    turned = sum(pieces[n] for n in turned_matrices(model)) if layout.optimiser.kind == "muon" else 0
    held = {
        "parameters": everything,
        "moments": 2 * (everything - turned) + turned,
        "average": everything,
    }
    numbers = sum(p.numel() for p in named.values())
    root, block = _groups(model, layout)
    compute, width = layout.compute, layout.width
    gathered = (root + 2 * block if compute.reshard_after_forward else numbers) * width
    summed = numbers * FP32 if layout.packs > 1 else 0
    pack_bytes = _pack(model.config, pack)
    head = model.heads.tokens.weight.numel() * width
    chunks = 2 if pack.rows > LOGIT_ROWS else 1
    kept, work = _activations(model.config, compute, width)
    outside = _outside(model.config, width, pack)
    logits = _logits(model.config, width, pack)
    tokens, layers = pack.tokens, model.config.layers
    passing = {
        "loss": {
            "gathered parameters": gathered,
            "gradients": max(summed, head * chunks),
            "activations": round(tokens * kept * layers) + outside,
            "logits, or one block's backward": max(logits, round(tokens * work)),
            "packs": pack_bytes,
        },
        "backward": {
            "gathered parameters": gathered,
            "gradients": everything,
            "gradients being summed": max(summed, root * width) + root * FP32,
            "activations": outside,
            "packs": pack_bytes,
        },
        "step": {
            "gradients": everything,
            "optimiser's work": 5 * turned,
            "packs": pack_bytes,
        },
    }
    return Memory(held, passing)


def _groups(model: OneFlowModel, layout: Layout) -> tuple[int, int]:
    """Numbers of what is gathered with the whole model, and of the largest block that is gathered by itself."""
    least = layout.compute.shard_min_mb * 2**20 / FP32
    apart = [n for n in (sum(p.numel() for p in b.parameters()) for b in blocks_of(model)) if n >= least]
    return sum(p.numel() for p in model.parameters()) - sum(apart), max(apart, default=0)


def _activations(config: ModelConfig, compute: ComputeSettings, width: int) -> tuple[float, float]:
    """Bytes of a token: kept by one block, and what the backward pass of one block adds.

    Under tensor parallelism a rank has its heads and its columns of F; what is D wide is on all.
    """
    D, F = config.width, config.ffn // compute.tensor_parallel
    query, kv = config.heads // compute.tensor_parallel, config.kv_heads // compute.tensor_parallel
    heads, q = (query + 2 * kv) * config.head_dim, query * config.head_dim
    rotated = (query + kv) * config.head_dim
    sums = FP32 * query
    attention = heads + rotated + q + (0 if width == 2 else heads + q)
    every = width * (2 * D + attention + 2 * D + 4 * F) + sums + 2 * FP32
    products = width * (D + heads + q + D + 2 * F + D) + sums
    gradients = width * 4 * F
    if compute.activation_checkpointing == "full":
        return width * D, every + gradients
    if compute.compile:
        # Measured (docs/benchmarks.md): beside the products, what went into the last product of each half.
        products += width * (rotated + F)
    elif compute.activation_checkpointing == "none":
        return every, gradients
    return products, every - products + gradients


def _outside(config: ModelConfig, width: int, pack: PackShape) -> int:
    """Kept outside of the blocks: both ends of the trunk, slots, adapters, rotations."""
    D = config.width
    ends = pack.tokens * (3 * D * width + 4 * config.head_dim) + (pack.slots + pack.rows) * D * width
    images = pack.patches * (config.patch_dim * (FP32 + 2 * width) + 3 * D * width)
    features = pack.features * (config.feature_dim * (FP32 + 2 * width) + 3 * D * width)
    return round(ends + images + features)


def _logits(config: ModelConfig, width: int, pack: PackShape) -> int:
    """Logits of the rows that are held at once, in float32, and in the passes' precision beside them."""
    rows = min(pack.rows, LOGIT_ROWS)
    return round(rows * config.vocab_size * (FP32 + (width if width < FP32 else 0)))


def _pack(config: ModelConfig, pack: PackShape) -> int:
    """One pack on the device."""
    numbers = 3 * pack.patches * config.patch_dim + pack.features * config.feature_dim
    return round(FP32 * numbers + 8 * (6 * pack.tokens + 4 * pack.patches + 4 * pack.slots + 3 * pack.rows))
