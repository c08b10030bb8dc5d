"""Features of whole pictures for a Frechet distance: Inception, DINOv2 or SigLIP by path, or the embedded SigLIP.

Only features of the original Inception weights give what may be called FID. A figure of other features bears their
name, and one of the embedded encoder says in its name that it compares with nothing.

Shapes: N pictures, D the width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oneflow_core.encoders.checkpoints import (
    loading,
    model_kind,
    quiet_loading,
    read_image_processor,
    read_model,
)
from oneflow_core.encoders.identity import EncoderError, encoder_id, read_name
from oneflow_core.encoders.inception import DIM, OFFICIAL, SIDE, FidInception
from oneflow_core.encoders.understanding import UnderstandingEncoder

Kind = Literal["inception", "dinov2", "siglip", "embedded"]
Resize = Literal["bilinear", "clean"]
"""How a picture comes to Inception's 299 pixels: as pytorch-fid does it, or as clean-fid (bicubic that smooths)."""
Picture = NDArray[np.uint8]
DINO = ("dinov2", "dinov2_with_registers")
PROCESSOR = (
    "image_processor_type",
    "size",
    "crop_size",
    "resample",
    "image_mean",
    "image_std",
    "do_center_crop",
)


@dataclass(frozen=True, slots=True)
class PictureFeatures:
    """Makes features; `figure` is what a Frechet distance of them is called."""

    id: str
    """What made them, with a digest of its weights and preprocessing."""
    figure: str
    """fid, fid_clean, fd_inception, fd_dinov2, fd_siglip, or fd_embedded_not_comparable."""
    encode: Callable[[Sequence[Picture]], Tensor]

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Picture], batch: int = 32) -> NDArray[np.float64]:
        """Features of uint8 pictures [H, W, 3], each of its own size: [N, D].

        Raises:
            EncoderError: another layout or type, no pictures, or numbers that are not finite.
        """
        for place, one in enumerate(pictures):
            if one.dtype != np.uint8 or one.ndim != 3 or one.shape[2] != 3 or 0 in one.shape:
                raise EncoderError(
                    f"picture {place} must be uint8 [H, W, 3], not {one.dtype} {list(one.shape)}; convert to RGB"
                )
        if not len(pictures):
            raise EncoderError("no pictures to encode; give at least one")
        parts = [self.encode(pictures[i : i + batch]).double().cpu() for i in range(0, len(pictures), batch)]
        found = torch.cat(parts)
        if not found.isfinite().all():
            raise EncoderError(f"{self.id} gives features that are not finite; look at its weights")
        made: NDArray[np.float64] = found.numpy()
        return made


def picture_features(
    kind: Kind, path: str | Path = "", *, resize: Resize = "bilinear", device: str = "cpu"
) -> PictureFeatures:
    """The features of `kind` by the file (Inception) or the directory or hub name (DINOv2, SigLIP) at `path`.

    Raises:
        EncoderError: nothing there, or weights of another kind.
    """
    if kind == "embedded":
        return _siglip("embedded", device, "fd_embedded_not_comparable")
    if not path:
        raise EncoderError(f"features of {kind} need a path; name the file or the directory of its weights")
    if kind == "inception":
        return _inception(path, resize, device)
    if kind == "dinov2":
        return _dino(path, device)
    return _siglip(path, device, "fd_siglip")


def _inception(path: str | Path, resize: Resize, device: str) -> PictureFeatures:
    network, sha256 = FidInception.from_file(path)
    network.to(device)
    shrink = {"bilinear": _bilinear, "clean": _clean}[resize]

    def encode(pictures: Sequence[Picture]) -> Tensor:
        inputs = torch.cat([shrink(torch.from_numpy(np.array(p)).permute(2, 0, 1)[None]) for p in pictures])
        return network(inputs.to(device))

    genuine = {"bilinear": "fid", "clean": "fid_clean"}[resize]
    figure = genuine if sha256.startswith(OFFICIAL) else "fd_inception"
    return PictureFeatures(f"inception@{sha256[:12]}/pool{DIM}-{resize}", figure, encode)


def _bilinear(pixels_1CHW: Tensor) -> Tensor:
    """As pytorch-fid 0.3.0: bilinear without smoothing, of values 0 to 1."""
    scaled = F.interpolate(pixels_1CHW.float() / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * scaled - 1


def _clean(pixels_1CHW: Tensor) -> Tensor:
    """As clean-fid 0.1.35: PIL's bicubic of each channel in float32, not rounded; its network takes (x - 128) / 128."""
    from PIL import Image

    size, how = (SIDE, SIDE), Image.Resampling.BICUBIC
    planes = [np.asarray(Image.fromarray(p.float().numpy()).resize(size, how)) for p in pixels_1CHW[0]]
    return (torch.from_numpy(np.stack(planes))[None] - 128) / 128


def _dino(path: str | Path, device: str) -> PictureFeatures:
    import transformers

    source = str(path)
    mend = (
        "name a directory or a hub repository with config, safetensors weights and preprocessor_config.json"
    )
    with quiet_loading(), loading("DINOv2", repr(source), mend):
        if (kind := model_kind(source)) not in DINO:
            raise EncoderError(f"{source!r} holds a {kind} model; name a DINOv2")
        model, processor = read_model(transformers.AutoModel, source), read_image_processor(source)
    model = model.to(device).eval().requires_grad_(False)
    stated = processor.to_dict()
    settings = {
        "processor": {key: stated.get(key) for key in PROCESSOR},
        "heads": model.config.num_attention_heads,
    }
    name = encoder_id(read_name(source, None), settings, model)

    def encode(pictures: Sequence[Picture]) -> Tensor:
        inputs = processor(list(pictures), return_tensors="pt", input_data_format="channels_last")
        return model(pixel_values=inputs["pixel_values"].to(device)).pooler_output

    return PictureFeatures(f"{name}/cls", "fd_dinov2", encode)


def _siglip(path: str | Path, device: str, figure: str) -> PictureFeatures:
    encoder = UnderstandingEncoder.from_pretrained(path, device=device)

    def encode(pictures: Sequence[Picture]) -> Tensor:
        return torch.cat([encoder.pool(one[None]) for one in pictures])

    return PictureFeatures(f"{encoder.id}/pooled", figure, encode)
