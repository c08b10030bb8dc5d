"""Encoders: latent codecs (what is generated), understanding encoders (what is looked at), dual ones (what judges)."""

from oneflow_core.encoders.dual import DualEncoder
from oneflow_core.encoders.identity import EncoderError
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.understanding import UnderstandingEncoder

__all__ = ["DualEncoder", "EncoderError", "LatentCodec", "UnderstandingEncoder"]
