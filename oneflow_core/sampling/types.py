"""What goes into the sampler and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oneflow_core.flows.insertion import FireRule
from oneflow_core.flows.schedule import build_schedule

Target = Literal["image", "text", "document"]
Reencode = Callable[[Tensor], Tensor]
"""Latents [B, C, h, w] as the codec has them to understanding features [B, P, dim]."""
OWN = ("steps", "image_guidance", "text_guidance", "temperature", "max_images", "max_tokens")
"""Settings of `SamplerConfig` that each document of a batch may have its own of; the others are shared."""


@dataclass(frozen=True)
class SamplerConfig:
    """How a generation is run.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 24
    """Steps from t = 0 to 1; texts of N tokens want at least 2 log2(N) + 4 (METHOD 7.4)."""
    schedule: str = "linear"
    """kappa, by the name that the model was trained under: when missing tokens arrive."""
    step_schedule: str = "linear"
    """How the steps lie: t = g(j / steps), with g of the names of kappa; power:2 makes early steps small."""
    adaptive: bool = False
    """Shortens a document's text step where a gap would be due more than one token, to a quarter at the least."""
    image_guidance: float = 2.0
    """Guidance scale of the velocity, away from a weak one; 1 is off."""
    image_weak: Literal["unprompted", "entropy"] = "unprompted"
    """The weak velocity: of the image without anything else (classifier-free guidance), or of the whole document with
    a more even attention, in the manner of entropy-rectifying guidance (arXiv 2504.13987; paper section 3)."""
    entropy_sharpness: float = 0.5
    """Factor of the attention logits in the weak pass of `entropy`, in every layer."""
    text_guidance: float = 0.0
    """w of exponents (1 + w, -w) on rates and tokens; 0 is off (METHOD section 4)."""
    temperature: float = 1.0
    """Of the token distribution; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Least probability mass of tokens to draw from."""
    fire: FireRule = "gate"
    flush: int = 8
    """Most extra passes after t = 1, in which gaps that probably miss something fire; 0 is off."""
    max_tokens: int = 256
    """Most generated tokens of a document."""
    max_images: int = 4
    """Most generated images of a document, those that it begins with included."""
    reencode: bool = False
    """Shows finished images as the understanding features of what was drawn, as given ones are shown, instead of as
    patches; for a model that was trained so (`TaskMixture.reencoded`). What comes out are the latents all the same."""
    text_delay: float = 0.0
    """For a document that begins with images: their time at which its text begins, in [0, 1). 0 moves both together,
    the diagonal of independent times and the path of fixed ones; reversed times were trained with any delay."""
    trace_images: bool = False
    """Keeps every image as it was after each of its steps, in the trace."""
    prefix_cache: bool = True
    """Computes keys and values of prompts once, where the network's prompts attend among themselves alone
    (`prompt_attention` prefix); off computes them at every step, with the same result."""
    length: int = 64
    """Tokens of a text under the masked objective, the end symbol included: those that it was trained with."""
    remask: Literal["random", "confidence"] = "random"
    """Which masked tokens the masked objective settles in a step: any (LLaDA: better for OneFlow's authors, paper
    section 3), or those that it is surest of."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10_000),
            ("flush", 0, 1_000),
            ("max_tokens", 1, 100_000),
            ("length", 1, 100_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], not {getattr(self, name)}")
        for name in (self.schedule, self.step_schedule):
            build_schedule(name)
        if not 0 < self.entropy_sharpness < 1:
            raise ValueError(f"entropy_sharpness must lie between 0 and 1, not {self.entropy_sharpness}")
        if not 0 <= self.text_delay < 1:
            raise ValueError(f"text_delay must lie in [0, 1), not {self.text_delay}")
        if not 0 < self.top_p <= 1 or self.temperature < 0 or self.max_images < 0:
            raise ValueError("top_p must lie in (0, 1], temperature and max_images must not be negative")


@dataclass(frozen=True)
class Request:
    """One document to generate: its prompt, in order, and what is to follow it.

    Raises:
        ValueError: images to begin with, for another target than a document.
    """

    prompt: tuple[tuple[int, ...] | NDArray[np.float32], ...]
    """Token ids of a text, or the understanding features [P, dim] of an image."""
    target: Target
    """image: one image after the prompt; text: a text after it; document: text with images where the model
    puts them."""
    grid: tuple[int, int]
    """Rows and columns of patches in a generated image."""
    seed: int = 0
    """The document's own randomness; the result does not depend on what else is in the batch."""
    images: int = 0
    """For a document: images that it begins with, in flow behind its text, as a pair has that is generated at once.
    0 is the interleaved path, where images begin when they are inserted; max_images 0 forbids more. For oneflow."""

    def __post_init__(self) -> None:
        if self.images < 0 or (self.images and self.target != "document"):
            raise ValueError(f"images {self.images}: only a document begins with images, 0 or more")


@dataclass(frozen=True)
class ImageState:
    """An image after one step. Latents [C, h, w], float32, in the scale of the codec."""

    step: int
    time: float
    """t_img after the step; 1 is done."""
    latent: NDArray[np.float32]
    """Y_t, still noisy."""
    estimate: NDArray[np.float32]
    """Where the step's velocity would lead at t = 1: what a preview shows."""


@dataclass(frozen=True)
class Trace:
    """When everything came to be. Entry i belongs to generated element i of the final document, in order."""

    token: tuple[int, ...]
    """Token id; the anchor's id for an image."""
    time: tuple[float, ...]
    """Text time t at insertion, in [0, 1]; an image that was asked for is there from 0."""
    step: tuple[int, ...]
    """Step number of the insertion."""
    passes: int
    """Forward passes until this document was done."""
    deleted: int = 0
    """Elements that were inserted and taken out again; they are not among the others."""
    images: tuple[tuple[ImageState, ...], ...] = ()
    """States of every generated image, in order, under `SamplerConfig.trace_images`."""


@dataclass(frozen=True)
class Generation:
    """A finished document, without its prompt: texts as token ids and images as latents [C, h, w], in order."""

    segments: tuple[tuple[int, ...] | NDArray[np.float32], ...]
    trace: Trace
