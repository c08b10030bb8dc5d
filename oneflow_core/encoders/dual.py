"""Dual encoders: pictures and texts in one space, by whole checkpoints of transformers' CLIP and SigLIP classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
from oneflow_core.encoders.identity import EncoderError, encoder_id, locate, read_name
from oneflow_core.encoders.text_inputs import TextInputs
from oneflow_core.encoders.understanding import ASSET

MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""By the checkpoint's model type; SigLIP 2 of a fixed size says "siglip", NaFlex says "siglip2"."""
TOWER = ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "image_size", "eos_token_id")
"""What of a tower's config decides its numbers, beside the weights and their shapes."""
PROCESSOR = (
    *("image_processor_type", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "patch_size", "max_num_patches"),
)
BATCH = 32
"""Pictures or texts that go through a tower at once."""


class DualEncoder:
    """Unit embeddings of pictures and of texts; their dot products are the cosines of CLIP score. Never trains."""

    def __init__(self, model: Any, processor: Any, texts: TextInputs, name: str) -> None:
        """Wraps a CLIPModel or a Siglip(2)Model with its PIL image processor and its texts' inputs."""
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.texts = texts
        self.kind: Literal["clip", "siglip"] = "clip" if model.config.model_type == "clip" else "siglip"
        stated, towers = processor.to_dict(), (model.config.text_config, model.config.vision_config)
        settings = {
            "towers": [{key: getattr(tower, key, None) for key in TOWER} for tower in towers],
            "processor": {key: stated.get(key) for key in PROCESSOR},
            "tokenizer": texts.digest,
            "positions": texts.positions,
        }
        self.id = encoder_id(name, settings, model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DualEncoder:
        """Loads a whole CLIP, SigLIP or SigLIP 2 from a directory or a hub name, or "embedded" (a small SigLIP).

        Weights are read from safetensors alone; nothing is unpickled and no code of the checkpoint is run.

        Raises:
            EncoderError: nothing there, weights of another format, or a model of another kind.
        """
        import transformers

        source = locate(name_or_path, ASSET)
        mend = (
            "name a directory or a hub repository with config, safetensors weights, tokenizer and "
            "preprocessor_config.json"
        )
        with quiet_loading(), loading("CLIP or SigLIP", repr(source), mend):
            if (kind := model_kind(source)) not in MODELS:
                raise EncoderError(f"{source!r} holds a {kind} model; name a whole CLIP or SigLIP")
            model = read_model(getattr(transformers, MODELS[kind]), source, dtype=dtype)
            texts = TextInputs.from_pretrained(source, model.config.text_config, masked=kind == "clip")
            return cls(model.to(device), read_image_processor(source), texts, read_name(source, None))

    @torch.inference_mode()
    def embed_images(self, images_HWC: Sequence[NDArray[np.uint8]], batch: int = BATCH) -> Tensor:
        """Unit embeddings of uint8 images [H, W, 3], each of its own size: float64 [len(images), D] on the CPU.

        Raises:
            EncoderError: another layout or type, or numbers that are not finite.
        """
        for place, image in enumerate(images_HWC):
            _check(place, image)
        embedded = []
        for start in range(0, len(images_HWC), batch):
            part = list(images_HWC[start : start + batch])
            inputs = dict(self.processor(part, return_tensors="pt", input_data_format="channels_last"))
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            embedded.append(self._unit(self.model.get_image_features(**self._placed(inputs))))
        return torch.cat(embedded) if embedded else torch.empty(0, 0, dtype=torch.float64)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch: int = BATCH) -> tuple[Tensor, int]:
        """Unit embeddings of texts, float64 [len(texts), D] on the CPU, and how many were cut to the tower's length.

        Raises:
            EncoderError: a text is no string or no valid Unicode, or numbers that are not finite.
        """
        embedded, cut = [], 0
        for start in range(0, len(texts), batch):
            inputs, cut_here = self.texts(texts[start : start + batch])
            embedded.append(self._unit(self.model.get_text_features(**self._placed(inputs))))
            cut += cut_here
        return (torch.cat(embedded) if embedded else torch.empty(0, 0, dtype=torch.float64)), cut

    def match(self, cosines: Tensor) -> Tensor:
        """SigLIP's probability that picture and text belong together: sigmoid(scale * cosine + bias).

        Raises:
            EncoderError: CLIP, which was not trained to say that of one pair.
        """
        if self.kind != "siglip":
            raise EncoderError(f"{self.id} is a CLIP, which gives no probability of a match; name a SigLIP")
        scale, bias = self.model.logit_scale.double().exp().cpu(), self.model.logit_bias.double().cpu()
        return torch.sigmoid(cosines.double() * scale + bias)

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _unit(self, output: Any) -> Tensor:
        found = output.pooler_output.double().cpu()
        if not found.isfinite().all():
            raise EncoderError(f"{self.id} gives embeddings that are not finite; load it in float32")
        return F.normalize(found, dim=-1)


def _check(place: int, image: object) -> None:
    shape, dtype = getattr(image, "shape", None), str(getattr(image, "dtype", type(image).__name__))
    if dtype != "uint8" or shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise EncoderError(
            f"image {place} must be a uint8 array [H, W, 3], not {dtype} {shape}; convert to RGB first"
        )
