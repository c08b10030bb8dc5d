"""Image encoders: latent codecs (what is generated) and understanding encoders (what is looked at)."""

from oneflow_core.encoders.identity import EncoderError
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.understanding import UnderstandingEncoder

__all__ = ["EncoderError", "LatentCodec", "UnderstandingEncoder"]
