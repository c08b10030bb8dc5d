"""Keys and values of tokens that stay what they are, kept from one pass to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from oneflow_core.model.config import ModelConfig


class KeyValueCache:
    """Rows of keys and values for every layer; which row is whose is the business of who plans the attention.

    `rows` grows as asked for, by half at least, and what was written stays. For inference alone: writing is in place.
    """

    def __init__(self, config: ModelConfig, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self._shape = (config.kv_heads, config.head_dim)
        self._held = torch.zeros(2, config.layers, 0, *self._shape, device=device, dtype=dtype)

    @property
    def rows(self) -> int:
        """Rows that there are."""
        return self._held.shape[2]

    def reserve(self, rows: int) -> None:
        """From now on there are at least so many rows."""
        if rows > self.rows:
            more = max(rows, self.rows * 3 // 2) - self.rows
            new = self._held.new_zeros(*self._held.shape[:2], more, *self._shape)
            self._held = torch.cat([self._held, new], dim=2)

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, [R, kv_heads, head_dim] each, to be written to in place."""
        return self._held[0, number], self._held[1, number]
