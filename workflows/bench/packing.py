"""How much of what a pack could hold it holds, beside batches that are padded to their longest document.

A pack is one flat sequence, so nothing in it is padding: what it may waste is room of its token budget, and the
padding of the rectangles in which attention is computed. Both are told. `next_fit` is the same stream with packs that
close at the first document that does not fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

import numpy as np

from oneflow_core.data.lanes import Blend, generator
from oneflow_core.data.loader import LoaderConfig
from oneflow_core.data.packer import LanePosition, Packer
from oneflow_core.model import PRESETS
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import Example, collate
from oneflow_core.tokenizer import Tokenizer
from workflows.bench.documents import FEATURES, LATENT, MIXTURES, draw
from workflows.bench.result import Result

Shares = Mapping[str, float]
LOOK_AHEAD = LoaderConfig(tokens=1, lanes=1).look_ahead


@dataclass(frozen=True)
class Stream:
    """One lane of a mixture: examples as the loader would make them, in reading order, each made once."""

    weights: Mapping[str, float]
    seed: int
    objective: OneFlowObjective

    def packs(self, tokens: int, look_ahead: int) -> Iterator[list[Example]]:
        """The lane's packs."""
        blend = Blend(self.weights, seed=str(self.seed), lane=0)
        start = LanePosition(dict.fromkeys(self.weights, 0))
        packer = Packer(start, blend, self._example, tokens=tokens, look_ahead=look_ahead, patience=1)
        return (examples for examples, _, _ in packer)

    def _example(self, kind: str, number: int) -> Example:
        return _made(self, kind, number)

    def __hash__(self) -> int:
        return id(self)


@cache
def _made(stream: Stream, kind: str, number: int) -> Example:
    sample = draw(kind, number, stream.seed)
    return stream.objective.corrupt(sample, generator(stream.seed, "sample", 0, sample.document.doc_id))


def run(runs: int) -> Result:
    """`efficiency` is the least share of the token budget that is filled, over mixtures and budgets."""
    return measure(runs, budgets=(1024, 2048), packs=40)


def measure(runs: int, budgets: Sequence[int], packs: int) -> Result:
    """Each run reads `packs` packs of every mixture and budget, with a seed of its own."""
    made = objective()
    measured = [
        {
            f"{name} in {tokens}": shares(Stream(weights, seed, made), tokens, packs)
            for tokens in budgets
            for name, weights in MIXTURES.items()
        }
        for seed in range(runs)
    ]
    _made.cache_clear()
    mixtures = {
        name: {share: float(np.median([m[name][share] for m in measured])) for share in measured[0][name]}
        for name in measured[0]
    }
    least = {share: min(m[share] for m in mixtures.values()) for share in next(iter(mixtures.values()))}
    ours = [min(m["efficiency"] for m in run.values()) for run in measured]
    peer = [min(m["padded"] for m in run.values()) for run in measured]
    extra = {
        "efficiency": least["efficiency"],
        "attention_efficiency": least["attention_efficiency"],
        "next_fit": least["next_fit"],
        "look_ahead": LOOK_AHEAD,
        "packs": packs,
        "mixtures": mixtures,
    }
    return Result("packing", "share of token slots", ours, peer, ("torch", "numpy"), extra)


def objective() -> OneFlowObjective:
    """That of the shapes preset, as far as lengths go."""
    tokenizer = Tokenizer.from_pretrained("embedded")
    dims = replace(PRESETS["nano"], latent_channels=LATENT[0], feature_dim=FEATURES[1])
    return OneFlowObjective(ObjectiveConfig(), dims, tokenizer)


def shares(stream: Stream, tokens: int, packs: int) -> Shares:
    """What is filled, of `packs` packs of `tokens` tokens."""
    ours = list(islice(stream.packs(tokens, LOOK_AHEAD), packs))
    next_fit = list(islice(stream.packs(tokens, 1), packs))
    held = sum(len(examples) for examples in ours)
    slots = sum(_rectangles(examples) for examples in ours)
    return {
        "efficiency": _tokens(ours) / (packs * tokens),
        "attention_efficiency": _tokens(ours) / slots,
        "next_fit": _tokens(next_fit) / (packs * tokens),
        "padded": _tokens(next_fit) / sum(len(b) * max(e.length for e in b) for b in next_fit),
        "tokens_per_document": _tokens(ours) / held,
    }


def _tokens(packs: Sequence[Sequence[Example]]) -> int:
    return sum(example.length for examples in packs for example in examples)


def _rectangles(examples: Sequence[Example]) -> int:
    """Slots of the rectangles that attention is computed in."""
    plan = collate(examples).inputs.attention
    return len(plan.query_Q)
