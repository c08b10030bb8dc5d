"""Latent codecs: images to latents and back, by diffusers' AutoencoderKL (SD3, FLUX, or the embedded one)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.encoders.checkpoints import loading
from oneflow_core.encoders.identity import (
    EncoderError,
    as_stored,
    check_images,
    encoder_id,
    locate,
    read_name,
    write_name,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SETTINGS = (
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "act_fn",
    "latent_channels",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "mid_block_add_attention",
)
"""What of the config decides the latents, beside the weights; the rest differs between diffusers versions."""
CHUNK_PIXELS = {"cpu": 16 * 64 * 64, "cuda": 64 * 256 * 256}
"""Pixels that go through the network at once, by device: on a CPU more only leaves the caches."""


class LatentCodec:
    """Latents z = (mean - shift) * scale of the posterior's mean, and their decoding. Never trains."""

    def __init__(self, vae: AutoencoderKL, name: str) -> None:
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name = name
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)
        self.channels = int(vae.config.latent_channels)
        self.downsample = int(2 ** (len(vae.config.block_out_channels) - 1))
        self.id = encoder_id(name, {k: vae.config.get(k) for k in SETTINGS}, vae)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "embedded",
        *,
        subfolder: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LatentCodec:
        """Loads "embedded", a directory, or a hub name (with `subfolder="vae"` for a whole pipeline).

        `dtype` is what the network computes in; its weights are cast to it, and the id speaks of the cast weights.

        Raises:
            EncoderError: nothing there, or no AutoencoderKL.
        """
        from diffusers import AutoencoderKL

        source = locate(name_or_path, "latent_codec")
        where = f"{source!r}" + (f", subfolder {subfolder!r}" if subfolder else "")
        mend = 'name "embedded", a directory that save_pretrained wrote, or a hub repository (with its subfolder)'
        with loading("AutoencoderKL", where, mend):
            vae = AutoencoderKL.from_pretrained(source, subfolder=subfolder, torch_dtype=dtype)
        return cls(vae.to(device), read_name(source, subfolder))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes config, safetensors and the name; `from_pretrained(directory)` has the same id.

        Weights are stored in float16 where that changes none of them. A saved copy is saved again as the same bytes.
        """
        as_stored(self.vae).save_pretrained(directory)
        _forget_origin(Path(directory) / "config.json")
        write_name(Path(directory), self.name)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        device: torch.device = self.vae.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; `encode` gives float32 whatever this is."""
        dtype: torch.dtype = self.vae.dtype
        return dtype

    @torch.inference_mode()
    def encode(self, images_NHWC: NDArray[np.uint8], at_once: int | None = None) -> Tensor:
        """Latents of uint8 images [N, H, W, 3]: float32 [N, C, H/downsample, W/downsample] on the CPU.

        `at_once` images go through the network together; None: as many as usually suit the device.

        Raises:
            EncoderError: another layout or type, or a side that `downsample` does not divide.
        """
        check_images(images_NHWC)
        n, height, width, _ = images_NHWC.shape
        if height % self.downsample or width % self.downsample:
            raise EncoderError(
                f"{width}x{height} pixels are no multiple of {self.downsample}; resize or pad first"
            )
        out = torch.empty(n, self.channels, height // self.downsample, width // self.downsample)
        for rows in self._chunks(n, height, width, at_once):
            pixels = torch.from_numpy(np.ascontiguousarray(images_NHWC[rows])).to(self.device)
            pixels = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).to(self.dtype)
            mean = self.vae.encode(pixels).latent_dist.mean.float()
            out[rows] = ((mean - self.shift) * self.scale).cpu()
        return out

    @torch.inference_mode()
    def decode(self, latents_NChw: Tensor) -> NDArray[np.uint8]:
        """Images of latents [N, C, h, w] of any float type: uint8 [N, h*downsample, w*downsample, 3].

        Raises:
            EncoderError: another number of dimensions or channels, or values that are not finite.
        """
        if latents_NChw.ndim != 4 or latents_NChw.shape[1] != self.channels:
            raise EncoderError(f"latents must be [N, {self.channels}, h, w], not {tuple(latents_NChw.shape)}")
        if not torch.isfinite(latents_NChw).all():
            raise EncoderError("latents hold values that are not finite; the sampler that made them diverged")
        n, _, h, w = latents_NChw.shape
        height, width = h * self.downsample, w * self.downsample
        out = np.empty((n, height, width, 3), np.uint8)
        for rows in self._chunks(n, height, width):
            raw = latents_NChw[rows].to(self.device, torch.float32) / self.scale + self.shift
            raw = raw.to(self.dtype).contiguous(memory_format=torch.channels_last)
            pixels = self.vae.decode(raw).sample.float().add(1.0).mul(127.5)
            out[rows] = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return out

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of this size usually go through the network together."""
        return max(1, CHUNK_PIXELS.get(self.device.type, CHUNK_PIXELS["cpu"]) // (height * width))

    def _chunks(self, n: int, height: int, width: int, at_once: int | None = None) -> list[slice]:
        step = at_once or self.images_at_once(height, width)
        return [slice(i, i + step) for i in range(0, n, step)]


def _forget_origin(config: Path) -> None:
    """Takes the directory that the network was once loaded from out of what diffusers wrote."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
