"""Image encoders: latent codecs (what is generated) and understanding encoders (what is looked at)."""

from oneflow_core.encoders.identity import EncoderError
from oneflow_core.encoders.latent import LatentCodec

__all__ = ["EncoderError", "LatentCodec"]
