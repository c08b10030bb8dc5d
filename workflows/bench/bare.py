"""What served sides are held against: a model in this process, on one thread or a GPU, given prompts in batches."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

import torch
from PIL import Image

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from workflows.evaluation.item import Item


class BareLoop:
    """Makes documents in memory: no HTTP, no PNG, nothing kept and nothing judged."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        self._pipeline = OneFlowPipeline.from_pretrained(model, device=device)

    def seconds(self, items: Sequence[Item], batch: int) -> float:
        """Seconds that the documents of all items take, `batch` prompts at once."""
        prompts = [_prompt(item) for item in items]
        begun = time.perf_counter()
        for first in range(0, len(items), batch):
            some = slice(first, first + batch)
            self._pipeline(
                prompts[some],
                seeds=[item.seed for item in items[some]],
                max_images=[item.max_images for item in items[some]],
            )
        return time.perf_counter() - begun


def _prompt(item: Item) -> Prompt:
    parts = (p if isinstance(p, str) else Image.open(io.BytesIO(p)).convert("RGB") for p in item.prompt)
    return Prompt(tuple(parts), item.target)
