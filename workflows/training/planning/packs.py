"""What one pack of a run holds: counted on packs of its own corpus, or assumed where that cannot be read.

Shapes: T tokens, N latent patches, M understanding features, S slots, R slots that miss something.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from oneflow_core.flops import NeededFlops
from oneflow_core.model import ModelConfig
from oneflow_core.packing import Pack
from workflows.training.config import TrainConfig

if TYPE_CHECKING:
    from workflows.training.materials import Materials

SAMPLED = 4
"""Packs that are read: some hundred documents where packs are long."""
CAPTION_ASSUMED = 64
"""Tokens of a caption, half of them kept, where no corpus tells."""
DOWNSAMPLE = 8


@dataclass(frozen=True, slots=True)
class PackShape:
    """Means over packs. `squares` is the sum of the squared lengths of the documents."""

    tokens: float
    patches: float
    features: float
    slots: float
    rows: float
    documents: float
    squares: float

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> "PackShape":
        """The mean of these packs."""
        rows = [_counts(pack) for pack in packs]
        return cls(**{name: fmean(getattr(row, name) for row in rows) for name in asdict(rows[0])})

    def flops(self, needed: NeededFlops) -> float:
        """FLOPs of forward and backward, as `NeededFlops.of_pack` counts them."""
        linear = needed.trunk * self.tokens + needed.image * self.patches + needed.head * self.rows
        return 6.0 * linear + needed.attention * self.squares


def sampled(config: TrainConfig, materials: "Materials") -> PackShape:
    """Counted on the first packs of the corpus, corrupted as training corrupts them. Shards are read by ranges."""
    data = config.data.model_copy(
        update={"lanes": 1, "packs_per_lane": 1, "read_ahead": 0, "cache_gb": 0.0, "window": 1}
    )
    loader = materials.build_loader(data, config.seed, "train", 0, 1)
    try:
        stream = iter(loader)
        return PackShape.of([pack for _ in range(SAMPLED) for pack in next(stream)])
    finally:
        loader.close()


def assumed(config: TrainConfig, model: ModelConfig) -> PackShape:
    """Packs full of images of registry.image_size with captions, both generated."""
    side = config.registry.image_size // DOWNSAMPLE // model.patch
    text, tokens = CAPTION_ASSUMED / 2, config.data.tokens
    length = min(2 + side * side + text, tokens)
    documents = max(tokens // length, 1)
    slots = documents * (2 + text)
    return PackShape(
        tokens=documents * length,
        patches=documents * side * side,
        features=0.0,
        slots=slots,
        rows=slots / 2,
        documents=documents,
        squares=documents * length**2,
    )


def _counts(pack: Pack) -> PackShape:
    inputs = pack.inputs
    lengths_B = inputs.attention.document_T.bincount().double()
    return PackShape(
        tokens=pack.tokens,
        patches=len(inputs.patch_N),
        features=len(inputs.feature_M),
        slots=len(inputs.slot_S),
        rows=len(inputs.logit_slot_R),
        documents=pack.documents,
        squares=float((lengths_B**2).sum()),
    )
