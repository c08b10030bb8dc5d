"""Generation by OneFlow beside AR + FM with its key-value cache: captions behind an image, and images behind a text.

The networks are untrained but do all their work; what they say of counts and tokens is then replaced by the truth about
a text of known length, so that both write exactly that text. OneFlow takes 2 log2(N) + 4 steps (METHOD 7.4).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oneflow_core.model import KeyValueCache, ModelConfig, ModelInputs, ModelOutputs, OneFlowModel
from oneflow_core.sampling import Request, SamplerConfig, build_sampler
from workflows.bench.result import Result

CERTAIN = 30.0
"""Logit of what is known."""


@dataclass(frozen=True)
class Size:
    """How large the benchmark is; the defaults take some minutes on one core."""

    width: int = 512
    layers: int = 6
    heads: int = 8
    ffn: int = 1376
    vocab: int = 2048
    lengths: tuple[int, ...] = (32, 128, 512)
    """Tokens of a caption."""
    prompt: int = 256
    """Understanding features of the image that is captioned; and tokens of the text that is drawn."""
    side: int = 16
    """Patches along one side of a generated image."""
    image_steps: int = 10
    batch: int = 4
    """Documents that are written at once for documents per second."""

    def model(self, **dims: Any) -> ModelConfig:
        """The trunk, with `dims` changed."""
        shape = ModelConfig(
            vocab_size=self.vocab,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            ffn=self.ffn,
            feature_dim=64,
        )
        return replace(shape, **dims)


class Writer(nn.Module):
    """A network that knows the text 2, 3, ..., length + 1: the place of a token is its id."""

    def __init__(self, model: OneFlowModel, length: int) -> None:
        super().__init__()
        self.model, self.config, self.embedding, self.length = model, model.config, model.embedding, length

    def forward(self, inputs: ModelInputs, cache: KeyValueCache | None = None) -> ModelOutputs:
        """The network's pass, with its words on text replaced."""
        outputs = self.model(inputs, cache)
        slots, vocab = inputs.slot_S, torch.arange(self.config.vocab_size, device=inputs.slot_S.device)
        here_S = inputs.token_T[slots].clamp(min=1)
        if self.config.objective == "transfusion":
            following_S = torch.where(here_S > self.length, 0, here_S + 1)
            return replace(outputs, logits_RV=CERTAIN * (vocab == following_S[:, None]).float(), late=None)
        document_S = inputs.attention.document_T[slots]
        last_S = torch.cat([document_S[1:] != document_S[:-1], document_S.new_ones(1).bool()])
        next_S = torch.where(last_S, self.length + 2, here_S.roll(-1))
        missing_S = (next_S - here_S - 1).float()
        bag_SV = (vocab > here_S[:, None]) & (vocab < next_S[:, None])

        def late(slot_F: Tensor) -> Tensor:
            outputs.logits_at(slot_F)
            return torch.where(bag_SV[slot_F], 0.0, -CERTAIN)

        return replace(
            outputs,
            pi_logit_S=torch.where(missing_S > 0, -CERTAIN, CERTAIN),
            rate_S=missing_S.clamp(min=1),
            late=late,
        )


class Bench:
    """The networks, and how long they take."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        shapes = {
            "oneflow": size.model(),
            "prefix": size.model(prompt_attention="prefix"),
            "ar": size.model(objective="transfusion"),
        }
        torch.manual_seed(0)
        self.models = {name: OneFlowModel(shape).to(device).eval() for name, shape in shapes.items()}
        self._rng = np.random.default_rng(0)

    def caption(self, name: str, length: int, count: int, cached: bool = True) -> float:
        """Seconds for `count` captions of `length` tokens, all at once."""
        features = self._rng.standard_normal((self.size.prompt, 64)).astype(np.float32)
        grid = (self.size.side, self.size.side)
        requests = [Request((features,), "text", grid, seed) for seed in range(count)]
        steps = 2 * math.ceil(math.log2(length)) + 4
        config = SamplerConfig(steps=steps, flush=8, max_tokens=length, prefix_cache=cached)
        model = Writer(self.models[name], length)
        seconds, made = self._time(model, requests, config)
        for generation in made:
            if generation.trace.token != tuple(range(2, length + 2)):
                raise ArithmeticError(
                    f"{name} wrote {generation.trace.token[:20]}..., not the text that it knows"
                )
        return seconds

    def image(self, name: str, count: int) -> float:
        """Seconds for `count` images behind a text, without guidance."""
        grid = (self.size.side, self.size.side)
        prompt = tuple(range(2, self.size.prompt + 2))
        requests = [Request((prompt,), "image", grid, seed) for seed in range(count)]
        return self._time(
            self.models[name], requests, SamplerConfig(steps=self.size.image_steps, image_guidance=1.0)
        )[0]

    def _time(
        self, model: nn.Module, requests: Sequence[Request], config: SamplerConfig
    ) -> tuple[float, list[Any]]:
        sampler = build_sampler(model, bos_id=0, image_id=1)  # type: ignore[arg-type]
        begun = time.perf_counter()
        made = sampler.generate(requests, config)
        return time.perf_counter() - begun, made


def run(runs: int, size: Size | None = None, device: str = "cpu") -> Result:
    """Latency of one document and documents per second of a batch; `prefix_cache.speedup` is of the shortest captions.

    In the rows, `ratio` is seconds of ours by seconds of the cached AR.
    """
    size, threads = size or Size(), torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        bench = Bench(size, device)
        captions = {str(length): _captions(bench, length, runs) for length in size.lengths}
        images = _images(bench, runs)
    finally:
        torch.set_num_threads(threads)
    shortest = captions[str(size.lengths[0])]
    cache = {
        "speedup": shortest["latency_ms"]["uncached"] / shortest["latency_ms"]["prefix"],
        "prompt": size.prompt,
        "length": size.lengths[0],
    }
    extra = {"prefix_cache": cache, "captions": captions, "images": images}
    ours, peer = shortest["runs"]["prefix"], shortest["runs"]["ar"]
    return Result("sample", "ms a caption", ours, peer, ("torch",), extra)


def _captions(bench: Bench, length: int, runs: int) -> dict[str, Any]:
    """Whole attention, the prefix with and without its cache, and AR with its cache, in turns."""
    ways = {
        "full": ("oneflow", True),
        "uncached": ("prefix", False),
        "prefix": ("prefix", True),
        "ar": ("ar", True),
    }
    alone: dict[str, list[float]] = {way: [] for way in ways}
    together: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, (name, cached) in ways.items():
            alone[way].append(1e3 * bench.caption(name, length, 1, cached))
    for way, (name, cached) in ways.items():
        together[way].append(bench.size.batch / bench.caption(name, length, bench.size.batch, cached))
    latency = {way: median(values) for way, values in alone.items()}
    return {
        "latency_ms": latency,
        "documents_per_s": {way: median(values) for way, values in together.items()},
        "ratio": latency["prefix"] / latency["ar"],
        "runs": alone,
    }


def _images(bench: Bench, runs: int) -> dict[str, Any]:
    ways = {"full": "oneflow", "prefix": "prefix", "ar": "ar"}
    alone: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, name in ways.items():
            alone[way].append(1e3 * bench.image(name, 1))
    rate = {way: bench.size.batch / bench.image(name, bench.size.batch) for way, name in ways.items()}
    latency = {way: median(values) for way, values in alone.items()}
    return {"latency_ms": latency, "documents_per_s": rate, "ratio": latency["prefix"] / latency["ar"]}
