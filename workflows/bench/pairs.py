"""The samples and sizes on which a training step is compared: texts of random tokens, each with a random latent."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """Of one comparison. Layers and the width of a head are those of both sides."""

    layers: int = 12
    heads: int = 6
    head_dim: int = 64
    """Our width is heads times this."""
    peer_heads: int = 8
    peer_width: int = 248
    """Residual stream of the peer: most of its parameters are in adaptive norms, so it is narrower for as many."""
    vocabulary: int = 2048
    text: int = 128
    """Tokens of a sample's text."""
    side: int = 16
    channels: int = 16
    """Of a latent [channels, side, side]; patches are of one cell."""
    batch: int = 4


Pairs = list[tuple[np.ndarray, np.ndarray]]


def draw(sizes: Sizes, seed: int) -> Pairs:
    """(token ids from 2 on, latent [C, h, w] in float32) of each sample of a batch."""
    rng = np.random.default_rng(seed)
    shape = (sizes.channels, sizes.side, sizes.side)
    return [
        (rng.integers(2, sizes.vocabulary, sizes.text), rng.standard_normal(shape, np.float32))
        for _ in range(sizes.batch)
    ]
