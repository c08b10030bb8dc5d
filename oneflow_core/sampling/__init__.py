"""Concurrent mixed-modal generation: text by insertions and images by flow, in one loop (paper section 2.3)."""

from oneflow_core.sampling.sampler import Sampler
from oneflow_core.sampling.types import Generation, Request, SamplerConfig, Trace

__all__ = ["Generation", "Request", "Sampler", "SamplerConfig", "Trace"]
