"""How images become latents and features."""

from typing import Literal, Self

from pydantic import Field, model_validator

from workflows.config import Config

Dtype = Literal["float32", "bfloat16", "float16"]


class ModelConfig(Config):
    """A codec or encoder by name."""

    name: str = "embedded"
    """"embedded", a directory, or a hub name."""
    subfolder: str | None = None
    """Where in a directory or repository the model lies, e.g. vae."""


class BucketsConfig(Config):
    """Sizes of several proportions, each of about image_size squared pixels; an image goes to the nearest."""

    step: int = Field(default=16, ge=1)
    """Sides are multiples of this many pixels: of the codec's downsampling times the network's patch."""
    max_aspect: float = Field(default=2.0, ge=1, le=16)
    """Longest proportion of the sides; what is longer is cropped to it."""


class EncodeConfig(Config):
    """How images become latents and features."""

    codec: ModelConfig = ModelConfig()
    """Latent codec: what the model generates."""
    understanding: ModelConfig | None = ModelConfig()
    """Understanding encoder: what the model looks at; null stores no features."""
    image_size: int = Field(default=64, ge=8)
    """Side of the square, in pixels, that every image is cropped and resized to."""
    buckets: BucketsConfig | None = None
    """Keep the aspect of images, about, by several sizes of as many pixels; null crops all to squares."""
    dtype: Dtype = "float32"
    """What the encoders compute in; what is stored is float16 whatever this is."""
    batch_size: int | Literal["auto"] = 64
    """Images in one pass of the encoders; "auto": found by trial once for a model, size and kind of device, and kept
    under the root. Short batches are padded, so that a latent does not depend on what else there was."""
    batch_gb: float | None = Field(default=None, gt=0)
    """Memory that a batch found by trial may take; None: a share of what the device has free."""
    part_images: int = Field(default=1024, ge=1)
    """Most images in one stored part."""
    part_mb: float = Field(default=64, gt=0)
    """Most megabytes of pixels of one stored part: readers and encoders hold a few of them at once."""
    actors: int | None = Field(default=None, ge=1)
    """Encoders at once; None: one for each CPU of the cluster (or GPU, when they take one)."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs that each encoder takes; 0 encodes on the CPU."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError("batch_size is 1 or more, or auto")
        if self.buckets is not None and self.image_size % self.buckets.step:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of buckets.step {self.buckets.step}"
            )
        return self
