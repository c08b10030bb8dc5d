"""Samples while a run trains: a grid of images for fixed prompts, and captions of held-out images with their traces."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from oneflow_core.data.cache import default_cache
from oneflow_core.data.lanes import LaneError
from oneflow_core.data.loader import Corpus, Loader, LoaderConfig, RefusedSample
from oneflow_core.data.shard import Sample
from oneflow_core.model import OneFlowModel
from oneflow_core.sampling.types import Generation, Request, SamplerConfig
from oneflow_core.trace import Trace, decode_trace
from workflows.tracking import Tracker
from workflows.training.config import TrainConfig
from workflows.training.materials import Materials
from workflows.training.parallel import Worker

if TYPE_CHECKING:
    from oneflow_core.encoders.latent import LatentCodec

GAP = 2


@dataclass(frozen=True, slots=True)
class _Whole:
    """A sample as it is; takes one place in a "pack"."""

    sample: Sample
    length: int = 1


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is asked for: a prompt's text or a held-out image's true caption, and the request."""

    words: str
    request: Request


class Gallery:
    """Fixed requests, shared out among the workers; rank 0 decodes, draws and logs."""

    def __init__(self, config: TrainConfig, materials: Materials, worker: Worker) -> None:
        self._config, self._materials, self._worker = config, materials, worker
        self._asked: list[_Shown] | None = None
        self._codec: LatentCodec | None = None

    def show(
        self, model: OneFlowModel, schedule: str, step: int, tracker: Tracker | None
    ) -> dict[str, float]:
        """Generate with `model`, by the kappa it was trained under, and log what came out; nothing without prompts.

        All ranks must call it; rank 0 gets the metrics of what was generated.
        """
        if not self._config.watch.prompts:
            return {}
        if self._asked is None:
            self._asked = self._requests()
        rank, world = self._worker.rank, self._worker.world_size
        sampler = self._materials.objective.sampler(model)
        objective = self._config.objective
        settings = SamplerConfig(
            steps=self._config.watch.sampler_steps,
            schedule=schedule,
            length=objective.masked_length,
        )
        mine = sampler.generate([shown.request for shown in self._asked[rank::world]], settings)
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, mine)
        if rank:
            return {}
        made: list[Generation] = [parts[i % world][i // world] for i in range(len(self._asked))]
        pairs = list(zip(self._asked, made, strict=True))
        if tracker:
            self._log(pairs[: len(self._config.watch.prompts) + self._config.watch.captions], step, tracker)
        return self._lengths(pairs)

    def _lengths(self, pairs: list[tuple[_Shown, Generation]]) -> dict[str, float]:
        """Tokens of the captions by those of the true ones: insertion betrays itself here first (METHOD 7.2)."""
        texts = [(shown, g) for shown, g in pairs if shown.request.target == "text"]
        limit, encode = self._config.objective.max_text_tokens, self._materials.tokenizer.encode
        real = sum(len(encode(shown.words)[:limit]) for shown, _ in texts)
        ours = sum(len(s) for _, g in texts for s in g.segments if isinstance(s, tuple))
        return {"samples/length_ratio": ours / real} if real else {}

    def _log(self, pairs: list[tuple[_Shown, Generation]], step: int, tracker: Tracker) -> None:
        latents = [g.segments[0] for shown, g in pairs if shown.request.target == "image"]
        tracker.image("samples", self._grid([a for a in latents if isinstance(a, np.ndarray)]), step)
        texts = [(shown, g) for shown, g in pairs if shown.request.target == "text"]
        rows = [(shown.words, decode_trace(g.trace, self._materials.tokenizer)) for shown, g in texts]
        told = [{"wanted": words, "trace": trace.to_json()} for words, trace in rows]
        images = [shown.words for shown, _ in pairs if shown.request.target == "image"]
        tracker.json(f"traces/step-{step:09d}.json", {"prompts": images, "captions": told})
        tracker.text(f"traces/step-{step:09d}.html", trace_page(rows))

    def _grid(self, latents: Sequence[np.ndarray]) -> bytes:
        from oneflow_core.encoders.latent import LatentCodec

        if self._codec is None:
            self._codec = LatentCodec.from_pretrained(
                self._config.registry.codec, subfolder=self._config.registry.codec_subfolder
            )
        return grid_png(self._codec.decode(torch.from_numpy(np.stack(latents))))

    def _requests(self) -> list[_Shown]:
        materials, watch = self._materials, self._config.watch
        shapes = [shape for m in materials.manifests for shape in m.latent_shapes]
        if not shapes:
            return []
        # Of a corpus with several, the squarest.
        shape = min(shapes, key=lambda shape: abs(shape[1] - shape[2]))
        grid = (shape[1] // materials.model_config.patch, shape[2] // materials.model_config.patch)
        encode = materials.tokenizer.encode
        asked = [
            _Shown(prompt, Request((tuple(encode(prompt)),), "image", grid, seed))
            for seed, prompt in enumerate(watch.prompts)
        ]
        for seed, sample in enumerate(_pairs(self._config, materials)):
            features = sample.features[0].astype(np.float32)
            asked.append(_Shown(sample.document.texts[0].text, Request((features,), "text", grid, seed)))
        return asked


def grid_png(images_NHWC: np.ndarray) -> bytes:
    """Images side by side, in rows as wide as they are many, as a PNG."""
    from PIL import Image

    count, height, width, _ = images_NHWC.shape
    columns = max(1, round((count * height / width) ** 0.5))
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for index, image in enumerate(images_NHWC):
        row, column = divmod(index, columns)
        sheet.paste(Image.fromarray(image), (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def trace_page(rows: Sequence[tuple[str, Trace]]) -> str:
    """Generated texts with every piece coloured by when it was inserted: blue early, red late."""
    body = "".join(
        f"<p><small>{html.escape(wanted)}</small><br>{_coloured(trace)}</p>" for wanted, trace in rows
    )
    return f"<!doctype html><meta charset=utf-8><title>Insertion traces</title><body>{body}</body>"


def _coloured(trace: Trace) -> str:
    return "".join(
        f'<span style="color:hsl({240 - 240 * piece.time:.0f},80%,40%)" title="step {piece.step}">'
        f"{html.escape(piece.text)}</span>"
        for piece in trace.insertions
    )


def _pairs(config: TrainConfig, materials: Materials) -> list[Sample]:
    """The first image-text pairs with features that training does not read (where nothing is held out: any)."""
    count, data = max(config.watch.captions, config.watch.length_captions), config.data

    def take(sample: Sample, rng: np.random.Generator) -> _Whole:
        if sample.document.kind != "pair" or not sample.features:
            raise RefusedSample("no image-text pair with features")
        return _Whole(sample)

    settings = LoaderConfig(
        tokens=1,
        lanes=1,
        look_ahead=1,
        seed=config.seed,
        holdout=data.holdout,
        part="heldout" if data.holdout else "train",
        read_ahead=0,
        cache=Path(data.cache_dir) if data.cache_dir else default_cache(),
    )
    corpora = [Corpus(manifest) for manifest in materials.manifests]
    loader = Loader(corpora, settings, prepare=take, collate=lambda examples: examples[0].sample)
    try:
        return [packs[0] for packs in islice(loader, count)]
    except LaneError:
        return []
    finally:
        loader.close()
