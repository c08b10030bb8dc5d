"""Understanding encoders: patch features of pictures that a model looks at, by transformers' SigLIP classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oneflow_core.encoders.checkpoints import loading, model_kind, quiet_loading, read_model
from oneflow_core.encoders.identity import (
    NAME_FILE,
    EncoderError,
    as_stored,
    check_images,
    encoder_id,
    locate,
    read_name,
    write_name,
)
from oneflow_core.encoders.preprocessing import Preprocessing

ASSET = "understanding_encoder"
SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "num_patches",
    "hidden_act",
    "layer_norm_eps",
)
"""What of the vision config decides the features, beside the weights and the preprocessing."""
CHUNK_TOKENS = {"cpu": 1024, "cuda": 65536}
"""Patch tokens that go through the network at once, by device."""


class UnderstandingEncoder:
    """The last hidden state of a SigLIP image tower, and the similarity of pictures and texts. Never trains."""

    def __init__(
        self, vision: Any, preprocessing: Preprocessing, name: str, source: str | None = None
    ) -> None:
        """Wraps a Siglip(2)VisionModel; `source` is where `score` finds the text tower and its tokenizer."""
        self.vision = vision.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.name = name
        self.dim = int(vision.config.hidden_size)
        self.patches = preprocessing.grid**2
        settings = {k: getattr(vision.config, k, None) for k in SETTINGS}
        self.id = encoder_id(name, settings | {"preprocessing": preprocessing.to_json()}, vision)
        self._source = source

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "embedded",
        *,
        subfolder: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> UnderstandingEncoder:
        """Loads the image tower of "embedded", of a directory, or of a hub name (SigLIP, SigLIP 2, NaFlex too).

        Raises:
            EncoderError: nothing there, or no SigLIP.
        """
        import transformers

        source = locate(name_or_path, ASSET)
        where = {"subfolder": subfolder} if subfolder else {}
        mend = 'name "embedded", a directory that save_pretrained wrote, or a hub repository'
        with quiet_loading(), loading("SigLIP image tower", repr(source), mend):
            kind = model_kind(source, **where)
            if not kind.startswith("siglip"):
                raise EncoderError(f"{source!r} holds a {kind} model; name a SigLIP or SigLIP 2 checkpoint")
            tower = "Siglip2VisionModel" if kind.startswith("siglip2") else "SiglipVisionModel"
            vision = read_model(getattr(transformers, tower), source, dtype=dtype, **where)
            preprocessing = Preprocessing.read(source, subfolder, vision.config)
        return cls(
            vision.to(device), preprocessing, read_name(source, subfolder), None if subfolder else source
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the image tower, its preprocessing and its name; a copy that is loaded again has the same id.

        The text tower is not written: features do not need it.
        """
        as_stored(self.vision).save_pretrained(directory)
        self.preprocessing.write(Path(directory))
        write_name(Path(directory), self.name)

    @torch.inference_mode()
    def encode(self, images_NHWC: NDArray[np.uint8], at_once: int | None = None) -> Tensor:
        """Patch features of uint8 images [N, H, W, 3], resized as the model asks: float32 [N, P, dim] on the CPU.

        `at_once` images go through the network together; None: as many as usually suit the device.

        Raises:
            EncoderError: another layout or type.
        """
        outputs = self._forward(images_NHWC, "last_hidden_state", at_once)
        return torch.cat(outputs) if outputs else torch.empty(0, self.patches, self.dim)

    @torch.inference_mode()
    def pool(self, images_NHWC: NDArray[np.uint8]) -> Tensor:
        """The pooled embedding of uint8 images [N, H, W, 3], not normalised: float32 [N, dim] on the CPU.

        Raises:
            EncoderError: another layout or type.
        """
        return torch.cat(self._forward(images_NHWC, "pooler_output"))

    @torch.inference_mode()
    def score(self, images_NHWC: NDArray[np.uint8], texts: Sequence[str]) -> Tensor:
        """Cosine of every picture's and every text's embedding: float32 [N, len(texts)], as CLIP score uses it.

        Texts longer than the text tower's positions are cut.

        Raises:
            EncoderError: the encoder was loaded without a text tower.
        """
        images = torch.cat(self._forward(images_NHWC, "pooler_output"))
        ids = self._text_tower.tokenise(texts).to(self.vision.device)
        embedded = self._text_tower.model(input_ids=ids).pooler_output.float().cpu()
        return F.normalize(images, dim=-1) @ F.normalize(embedded, dim=-1).T

    def images_at_once(self, height: int = 0, width: int = 0) -> int:
        """How many images, of whatever size, usually go through the network together."""
        return max(1, CHUNK_TOKENS.get(self.vision.device.type, CHUNK_TOKENS["cpu"]) // self.patches)

    def _forward(
        self, images_NHWC: NDArray[np.uint8], output: str, at_once: int | None = None
    ) -> list[Tensor]:
        check_images(images_NHWC)
        step = at_once or self.images_at_once()
        outputs = []
        for start in range(0, len(images_NHWC), step):
            inputs = self.preprocessing(images_NHWC[start : start + step], self.vision.device)
            inputs = {k: v.to(self.vision.device) for k, v in inputs.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(self.vision.dtype)
            outputs.append(getattr(self.vision(**inputs), output).cpu().float())
        return outputs

    @cached_property
    def _text_tower(self) -> TextTower:
        if self._source is None:
            raise EncoderError(
                "this encoder was loaded without a text tower; load the whole SigLIP by its name"
            )
        return TextTower.from_pretrained(self._source, device=self.vision.device, dtype=self.vision.dtype)


class TextTower:
    """The text half of a SigLIP with the tokenizer that it was trained with."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Wraps a Siglip(2)TextModel and either our `Tokenizer` or a transformers one."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.positions = int(model.config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls, source: str, *, device: torch.device, dtype: torch.dtype) -> TextTower:
        """Loads it from where a whole SigLIP lies.

        Raises:
            EncoderError: only an image tower lies there.
        """
        import transformers

        from oneflow_core.tokenizer import Tokenizer

        with quiet_loading(), loading("text tower", repr(source), "load the whole SigLIP by its name"):
            kind = model_kind(source)
            if kind not in ("siglip", "siglip2"):
                raise EncoderError(
                    f"{source!r} holds no text tower, only a {kind}; load the whole SigLIP by its name"
                )
            tower = transformers.Siglip2TextModel if kind == "siglip2" else transformers.SiglipTextModel
            ours = Path(source, NAME_FILE).is_file()
            tokenizer = (Tokenizer if ours else transformers.AutoTokenizer).from_pretrained(source)
            model = read_model(tower, source, dtype=dtype)
        return cls(model.to(device), tokenizer)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Ids, cut and padded to the tower's positions as SigLIP is trained: int64 [len(texts), positions]."""
        from oneflow_core.tokenizer import Tokenizer

        if isinstance(self.tokenizer, Tokenizer):
            return pad_ids([self.tokenizer.encode(t) for t in texts], self.positions, self.tokenizer.bos_id)
        options = {"padding": "max_length", "truncation": True, "max_length": self.positions}
        ids: Tensor = self.tokenizer(list(texts), return_tensors="pt", **options)["input_ids"]
        return ids


def pad_ids(ids: Sequence[Sequence[int]], length: int, padding: int) -> Tensor:
    """Ids cut or padded on the right to `length`: int64 [len(ids), length]."""
    return torch.tensor([[*row[:length], *[padding] * (length - len(row))] for row in ids])
