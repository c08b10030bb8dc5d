"""What a SigLIP wants its pictures to be: size, resampling, mean and deviation; by PIL, numpy and torch alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILE_NAME = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Squares of `size` pixels by PIL's `resample`, then (x / 255 - mean) / std."""

    size: int
    patch: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = 3
    """PIL's number: 2 is bilinear, 3 bicubic."""
    flatten: bool = False
    """Hand over flattened patches with their grid, as the NaFlex models of SigLIP 2 take them."""

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch

    @classmethod
    def read(cls, source: str, subfolder: str | None, vision_config: Any) -> Preprocessing:
        """From the vision config and, where one lies beside it, preprocessor_config.json (mean, std, resample)."""
        from transformers.utils import cached_file

        path = cached_file(
            source,
            FILE_NAME,
            subfolder=subfolder or "",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        stated = json.loads(Path(path).read_text()) if path else {}
        plain = cls.of(vision_config)
        return replace(
            plain,
            mean=tuple(stated.get("image_mean", plain.mean)),
            std=tuple(stated.get("image_std", plain.std)),
            resample=int(stated.get("resample", plain.resample)),
        )

    @classmethod
    def of(cls, vision_config: Any) -> Preprocessing:
        """The size and patches of a vision config, the rest as SigLIP has it; for NaFlex the largest square."""
        patch, flatten = int(vision_config.patch_size), not hasattr(vision_config, "image_size")
        size = round(vision_config.num_patches**0.5) * patch if flatten else int(vision_config.image_size)
        return cls(size, patch, flatten=flatten)

    def write(self, directory: Path) -> None:
        """Writes preprocessor_config.json in transformers' names; `read` gives the same back."""
        size = {"height": self.size, "width": self.size}
        stated = {"image_mean": self.mean, "image_std": self.std, "resample": self.resample, "size": size}
        (directory / FILE_NAME).write_text(json.dumps(stated, indent=2) + "\n")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def __call__(
        self, images_NHWC: NDArray[np.uint8], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """The model's inputs for uint8 images: float32 `pixel_values` [N, 3, size, size], or flattened patches.

        Bytes go to the `device`, and become numbers there.
        """
        resized = torch.from_numpy(np.stack([self._resize(image) for image in images_NHWC]))
        pixels = resized.to(device).float() / 255
        pixels = (pixels - torch.tensor(self.mean, device=device)) / torch.tensor(self.std, device=device)
        if not self.flatten:
            return {"pixel_values": pixels.permute(0, 3, 1, 2).contiguous()}
        n, side = len(pixels), self.grid
        tiles = pixels.view(n, side, self.patch, side, self.patch, 3).transpose(2, 3)
        return {
            "pixel_values": tiles.reshape(n, side * side, -1),
            "pixel_attention_mask": torch.ones(n, side * side, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[side, side]] * n),
        }

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[:2] == (self.size, self.size):
            return image
        from PIL import Image

        resized = Image.fromarray(image).resize((self.size, self.size), Image.Resampling(self.resample))
        return np.asarray(resized)
