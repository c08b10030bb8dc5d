"""A training step of OneFlow beside AR + FM: the same documents, trunk, tokens and machine.

Wall-clock a document, from the document to its gradient: corruption, packing, forward and backward; the optimiser, the
same for both, is left out. FLOPs are those that torch.utils.flop_counter counts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from oneflow_core.data.shard import Sample
from oneflow_core.model import ModelConfig, OneFlowModel
from oneflow_core.model.attention import AttentionPlan
from oneflow_core.objectives import Objective, ObjectiveConfig, build_objective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example, Pack, collate
from workflows.bench.flops import flop_counter
from workflows.bench.random_documents import Ids, image, sample, text
from workflows.bench.result import Result

CONCURRENT = TaskMixture(concurrent=1.0, prompt_dropout=0.0)


@dataclass(frozen=True)
class Size:
    """How large the benchmark is; the defaults take a minute or two on one core."""

    width: int = 512
    layers: int = 6
    heads: int = 8
    ffn: int = 1376
    vocab: int = 2048
    text: int = 256
    """Tokens of a document of text."""
    caption: int = 128
    """Text tokens beside an image."""
    side: int = 32
    """Side of a latent; with patches of 2 an image is (side / 2)^2 tokens."""
    budget: int = 4096
    """Tokens of clean documents in one step."""

    copies: int = 4
    """Corruptions that share a prompt, where sharing is measured."""

    def model(self, kind: str, **dims: Any) -> ModelConfig:
        """The trunk, for an objective, with `dims` changed."""
        return ModelConfig(
            vocab_size=self.vocab,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            ffn=self.ffn,
            feature_dim=64,
            objective=kind,  # type: ignore[arg-type]
            **dims,
        )


class Side:
    """One objective with its own copy of the trunk."""

    def __init__(self, kind: str, size: Size, device: str, copies: int = 1, **changed: Any) -> None:
        config = ObjectiveConfig(
            kind=kind,  # type: ignore[arg-type]
            mixture=CONCURRENT,
            max_text_tokens=1 << 20,
            copies=copies,
        )
        dims = size.model(kind, **changed)
        self.objective: Objective = build_objective(config, dims, Ids(size.vocab))  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.model, self.device = OneFlowModel(dims).to(device), device

    def step(self, documents: Sequence[Sample], seed: int, collated: Callable[..., Pack] = collate) -> float:
        """Seconds from the documents to their gradient."""
        self.model.zero_grad()
        begun = self._now()
        rng = np.random.default_rng(seed)
        self.loss([self.objective.corrupt(d, rng) for d in documents], collated).backward()
        return self._now() - begun

    def loss(self, examples: list[Example], collated: Callable[..., Pack] = collate) -> torch.Tensor:
        """The loss of these examples as one pack."""
        pack = collated(examples).to(self.device)
        return self.objective.loss(self.model, pack, self.objective.normalisers(pack)).total

    def flops(self, documents: Sequence[Sample], seeds: Sequence[int]) -> float:
        """FLOPs a document of a step, the mean over corruptions."""
        with flop_counter() as counter:
            for seed in seeds:
                self.step(documents, seed)
        return counter.get_total_flops() / len(seeds) / len(documents)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def run(runs: int, size: Size | None = None, device: str = "cpu") -> Result:
    """Ratios of ours to AR + FM for texts, and for images with texts that are written at once."""
    size, threads = size or Size(), torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        rng = np.random.default_rng(0)
        texts = [sample([text(rng, size.text, size.vocab)], rng) for _ in range(size.budget // size.text)]
        patches = (size.side // 2) ** 2
        pairs = [
            sample([text(rng, size.caption, size.vocab), image(size.side * 8)], rng, side=size.side)
            for _ in range(size.budget // (size.caption + patches))
        ]
        ours, theirs = Side("oneflow", size, device), Side("transfusion", size, device)
        only, mixed = _compare(ours, theirs, texts, runs), _compare(ours, theirs, pairs, runs)
        derived = (patches + size.caption / 2) / (patches + size.caption)
        extra = {
            "text_only": only,
            "text_image": {**mixed, "derived": derived, "off": mixed["ratio"] / derived - 1},
            "packing": _packed(ours, size, runs),
            "shared_prompt": _shared(size, runs, device),
        }
    finally:
        torch.set_num_threads(threads)
    return Result("train-step", "ms a document", only["ours"], only["peer"], ("torch",), extra)


def _compare(ours: Side, theirs: Side, documents: Sequence[Sample], runs: int) -> dict[str, Any]:
    """Milliseconds a document of every run, in turns; corruptions are the same number of draws of t for all."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for side in (ours, theirs):
        side.step(documents, 0)
    for seed in range(runs):
        for name, side in (("ours", ours), ("peer", theirs)):
            times[name].append(1e3 * side.step(documents, seed) / len(documents))
    seeds = range(min(runs, 3))
    flops = {"ours": ours.flops(documents, seeds), "peer": theirs.flops(documents, seeds[:1])}
    return {
        **times,
        "ratio": sum(times["ours"]) / sum(times["peer"]),
        "flops": flops,
        "flops_ratio": flops["ours"] / flops["peer"],
    }


def _shared(size: Size, runs: int, device: str) -> dict[str, Any]:
    """A corruption of a caption behind an image: alone with whole attention, and sharing its prompt with others."""
    rng = np.random.default_rng(2)
    patches = (size.side // 2) ** 2
    count = max(size.copies, size.budget // (size.caption + patches) // size.copies * size.copies)
    documents = [
        sample(
            [image(size.side * 8, "prompt"), text(rng, size.caption, size.vocab, "target")],
            rng,
            side=2,
            features=(patches, 64),
        )
        for _ in range(count)
    ]
    few = documents[: count // size.copies]
    alone = Side("oneflow", size, device)
    shared = Side("oneflow", size, device, size.copies, prompt_attention="prefix")
    times: dict[str, list[float]] = {"alone": [], "shared": []}
    for seed in range(runs):
        times["alone"].append(1e3 * alone.step(documents, seed) / count)
        times["shared"].append(1e3 * shared.step(few, seed) / count)
    flops = {"alone": alone.flops(documents, range(2)), "shared": shared.flops(few, range(2)) / size.copies}
    return {
        "copies": size.copies,
        "prompt": patches,
        "speedup": median(times["alone"]) / median(times["shared"]),
        "flops": flops,
        "flops_ratio": flops["shared"] / flops["alone"],
        **times,
    }


def _packed(ours: Side, size: Size, runs: int) -> dict[str, Any]:
    """Packs against rectangles padded to the longest document, on lengths as long captions have them."""
    rng = np.random.default_rng(1)
    lengths = np.clip(np.exp(rng.normal(4.2, 0.8, size.budget // 90)), 8, size.budget // 8).astype(int)
    documents = [sample([text(rng, int(n), size.vocab)], rng) for n in lengths]
    corrupted = [ours.objective.corrupt(d, np.random.default_rng(i)) for i, d in enumerate(documents)]
    packed, padded = ours.loss(corrupted).item(), ours.loss(corrupted, _padded).item()
    if abs(packed - padded) > 1e-5 * abs(padded):
        raise ArithmeticError(f"packed and padded losses differ: {packed} and {padded}")
    times: dict[str, list[float]] = {"packed": [], "padded": []}
    for seed in range(runs):
        times["packed"].append(ours.step(documents, seed))
        times["padded"].append(ours.step(documents, seed, _padded))
    return {
        "speedup": median(times["padded"]) / median(times["packed"]),
        "loss_difference": abs(packed - padded) / abs(padded),
        **times,
    }


def _padded(examples: list[Example]) -> Pack:
    """The same documents as one rectangle: every document as long as the longest, behind its own tokens padding.

    The padding is real work for the trunk, as in a [batch, length] tensor, and no one's key.
    """
    pack = collate(examples)
    lengths = np.array([e.length for e in examples])
    longest, count = int(lengths.max()), len(examples)
    real_BL = np.arange(longest) < lengths[:, None]
    place_T = torch.from_numpy(np.flatnonzero(real_BL))
    inputs = pack.inputs

    def spread(values_T: torch.Tensor) -> torch.Tensor:
        return values_T.new_zeros(count * longest).index_copy(0, place_T, values_T)

    plan = AttentionPlan.build(np.full(count, longest))
    plan.buckets[0] = replace(plan.buckets[0], mask=torch.from_numpy(real_BL[:, None, None, :]))
    wide = replace(
        inputs,
        token_T=spread(inputs.token_T),
        position_T=spread(inputs.position_T),
        prompt_T=spread(inputs.prompt_T),
        text_time_T=spread(inputs.text_time_T),
        attention=plan,
        slot_S=place_T[inputs.slot_S],
    )
    return replace(pack, inputs=wide)
