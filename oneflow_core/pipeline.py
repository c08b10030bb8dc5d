"""OneFlowPipeline: prompts of text and images in, documents of text and images out, whatever the model's home."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from oneflow_core.encoders.identity import EncoderError
from oneflow_core.images import fit
from oneflow_core.model.onednn import lay_out
from oneflow_core.model_directory import ModelParts, load, save
from oneflow_core.model_source import Facts, local_directory
from oneflow_core.running import Options, RunningBatch
from oneflow_core.sampling import build_sampler
from oneflow_core.sampling.types import Generation, Request, SamplerConfig, Target
from oneflow_core.trace import Trace, decode_trace

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """What is given: texts and images in reading order; and what is to be made of it."""

    segments: tuple[str | Image, ...] = ()
    target: Target = "image"


@dataclass(frozen=True)
class GeneratedDocument:
    """What was made, without the prompt, and how it came to be."""

    segments: tuple[str | Image, ...]
    trace: Trace

    @property
    def text(self) -> str:
        """The text segments, joined by nothing."""
        return "".join(s for s in self.segments if isinstance(s, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """The images, in order."""
        return tuple(s for s in self.segments if not isinstance(s, str))


class OneFlowPipeline:
    """A model with its tokenizer and encoders.

    It takes the network of `parts` for inference alone: what trains one takes it from `model_directory.load`.
    """

    def __init__(self, parts: ModelParts, identity: Facts | None = None) -> None:
        lay_out(parts.model)
        self.parts = parts
        self.identity: Facts = {"name": "", "version": "", "run_id": "", **(identity or {})}
        model, tokenizer = parts.model, parts.tokenizer
        self.defaults = _with(SamplerConfig(), parts.sampler)
        ids = {"bos_id": tokenizer.bos_id, "image_id": tokenizer.image_id}
        self.sampler = build_sampler(model, **ids, reencode=lambda z: self._features(parts.codec.decode(z)))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "embedded",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> OneFlowPipeline:
        """Loads "embedded", a directory, an fsspec URL, or `models:/name@alias` where a resolver is registered.

        Raises:
            ModelSourceError: nothing there.
            ModelDirectoryError: what is there is incomplete, or its parts do not belong together.
        """
        with local_directory(source) as (directory, facts):
            parts, version = load(directory, device=device, dtype=dtype)
        return cls(parts, {"version": version, "run_id": parts.notes.get("run_id", ""), **facts})

    def save_pretrained(self, directory: str | Path) -> Path:
        """Writes every part and the model card; `from_pretrained(directory)` gives equal outputs."""
        return save(self.parts, directory)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        seeds: int | Sequence[int] = 0,
        steps: int | None | Sequence[int | None] = None,
        guidance: float | None | Sequence[float | None] = None,
        temperature: float | None | Sequence[float | None] = None,
        max_images: int | None | Sequence[int | None] = None,
        max_tokens: int | None | Sequence[int | None] = None,
    ) -> list[GeneratedDocument]:
        """One document a prompt, in order, all in one batch; what is None takes the model's default.

        A document depends on its prompt, seed and options alone, not on its neighbours. `guidance` is the scale of
        the velocity (1 is off) where images are made, and w of the insertion rates (0 is off) for `target="text"`.

        Raises:
            ValueError: an option out of its range, or as many options as there are no prompts.
        """
        n = len(prompts)
        each = [_each(value, n) for value in (steps, guidance, temperature, max_images, max_tokens)]
        options = [Options(*values) for values in zip(*each, strict=True)]
        batch = RunningBatch(self)
        keys = batch.join(batch.prepare(prompts, _each(seeds, n), options))
        made: dict[int, GeneratedDocument] = {}
        while len(batch):
            for key, document in batch.step():
                if isinstance(document, EncoderError):
                    raise document
                made[key] = document
        return [made[key] for key in keys]

    def config(self, target: Target, options: Options) -> SamplerConfig:
        """The settings of a document: the model's defaults with these options.

        Raises:
            ValueError: an option out of its range.
        """
        aim = "text_guidance" if target == "text" else "image_guidance"
        given = {
            "steps": options.steps,
            aim: options.guidance,
            "temperature": options.temperature,
            "max_images": options.max_images,
            "max_tokens": options.max_tokens,
        }
        if target == "image":
            # There is no text to guide, and its unprompted copy would be computed for nothing.
            given["text_guidance"] = 0.0
        return _with(self.defaults, {k: v for k, v in given.items() if v is not None})

    def requests(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Request]:
        """Prompts as token ids and understanding features; all images are encoded together."""
        size = self.parts.image_size
        images = [fit(s, size) for p in prompts for s in p.segments if not isinstance(s, str)]
        encoded = self._features(np.stack(images)).numpy() if images else ()
        features = iter(encoded)
        side = size // (self.parts.codec.downsample * self.parts.model.config.patch)
        return [
            Request(
                tuple(
                    tuple(self.parts.tokenizer.encode(s)) if isinstance(s, str) else next(features)
                    for s in prompt.segments
                ),
                prompt.target,
                (side, side),
                seed,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _features(self, images_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """Understanding features [N, P, dim] as training sees them, which is as shards hold them, in float16."""
        return self.parts.encoder.encode(images_NHWC).half().float()

    def documents(self, generations: Sequence[Generation]) -> list[GeneratedDocument]:
        """Generations as texts and pictures, which are all decoded together."""
        latents = [torch.from_numpy(s) for g in generations for s in g.segments if isinstance(s, np.ndarray)]
        pictures = iter(self.pictures(torch.stack(latents)) if latents else ())
        tokenizer = self.parts.tokenizer
        return [
            GeneratedDocument(
                tuple(
                    next(pictures) if isinstance(s, np.ndarray) else tokenizer.decode(s)
                    for s in generation.segments
                ),
                decode_trace(generation.trace, tokenizer),
            )
            for generation in generations
        ]

    def pictures(self, latents_NChw: torch.Tensor) -> list[Image]:
        """Latents [N, C, h, w] in the scale of the codec, decoded."""
        from PIL import Image

        return [Image.fromarray(pixels) for pixels in self.parts.codec.decode(latents_NChw)]


def _with(config: SamplerConfig, changes: Mapping[str, object]) -> SamplerConfig:
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"the sampler has no such option: {error}") from error


def _each(value: T | Sequence[T], count: int) -> list[T]:
    if isinstance(value, Sequence):
        if len(value) != count:
            raise ValueError(f"{len(value)} options for {count} prompts; give one, or one for each")
        return list(value)
    return [value] * count
