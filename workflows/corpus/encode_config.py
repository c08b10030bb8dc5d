"""How images become latents and features."""

from pydantic import Field

from workflows.config import Config


class ModelConfig(Config):
    """A codec or encoder by name."""

    name: str = "embedded"
    """"embedded", a directory, or a hub name."""
    subfolder: str | None = None
    """Where in a directory or repository the model lies, e.g. vae."""


class EncodeConfig(Config):
    """How images become latents and features."""

    codec: ModelConfig = ModelConfig()
    """Latent codec: what the model generates."""
    understanding: ModelConfig | None = ModelConfig()
    """Understanding encoder: what the model looks at; null stores no features."""
    image_size: int = Field(default=64, ge=8)
    """Side of the square, in pixels, that every image is cropped and resized to."""
    batch_size: int = Field(default=64, ge=1)
    """Images in one pass of the encoders. Short batches are padded, so that a latent does not depend on it."""
    part_images: int = Field(default=1024, ge=1)
    """Most images in one stored part."""
    actors: int | None = Field(default=None, ge=1)
    """Encoders at once; None: one for each CPU of the cluster (or GPU, when they take one)."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs that each encoder takes; 0 encodes on the CPU."""
