"""The corruption of a text and its targets, beside a loop over its tokens that gives the same.

Texts come as token ids, as from a tokenizer that is done; what tokenising takes is told apart. Times are CPU time of
one thread: of a run the least of several batches, so that what else the machine does is left out.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from oneflow_core.data.shard import Sample
from oneflow_core.document import Document, TextSegment
from oneflow_core.model import PRESETS
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.packing import Example
from oneflow_core.tokenizer import Tokenizer
from workflows.bench.documents import draw
from workflows.bench.result import Result
from workflows.errors import OneFlowError

LENGTHS = (256, 512, 1024, 2048, 4096)
VOCABULARY = 128_256
BATCHES = 8


class Tokenised:
    """Stands where a tokenizer does, for texts whose ids are known already; a text is its number of tokens."""

    bos_id, image_id, vocab_size = 0, 1, VOCABULARY

    def __init__(self, lengths: Sequence[int]) -> None:
        rng = np.random.default_rng(0)
        self.ids = {str(n): rng.integers(2, VOCABULARY, n) for n in lengths}

    def encode(self, text: str) -> Any:
        """The ids of the text of so many tokens."""
        return self.ids[text]


def run(runs: int) -> Result:
    """`ms_per_sample_1024`: milliseconds to corrupt a text of 1,024 tokens and build what it is trained on."""
    return measure(runs, LENGTHS, documents=100)


def measure(runs: int, lengths: Sequence[int], documents: int) -> Result:
    """Times texts of each length; the middle length is the one that is told first."""
    tokenised = Tokenised(lengths)
    config = ObjectiveConfig(max_text_tokens=max(lengths))
    objective = OneFlowObjective(config, PRESETS["nano"], tokenised)  # type: ignore[arg-type]
    samples = {n: Sample(Document(str(n), "bench", "CC0-1.0", (TextSegment(str(n)),))) for n in lengths}
    for n in lengths:
        _same(objective.corrupt(samples[n], np.random.default_rng(n)), tokenised.ids[str(n)], n)
    ours: dict[int, list[float]] = {n: [] for n in lengths}
    peer: dict[int, list[float]] = {n: [] for n in lengths}
    rng = np.random.default_rng(1)
    for _ in range(runs):
        for n in lengths:
            ours[n].append(_least(partial(objective.corrupt, samples[n], rng), documents))
            by_tokens = partial(by_loop, tokenised.ids[str(n)].tolist(), rng)
            peer[n].append(_least(by_tokens, max(1, documents // 10)))
    told = sorted(lengths)[len(lengths) // 2]
    ms = {n: float(np.median(ours[n])) for n in lengths}
    extra = {
        f"ms_per_sample_{told}": ms[told],
        "ms": {str(n): value for n, value in ms.items()},
        "peer_ms": {str(n): float(np.median(peer[n])) for n in lengths},
        **line(ms),
        f"tokenising_ms_{told}": _tokenising(told, documents),
    }
    return Result("targets", "ms", ours[told], peer[told], ("torch", "numpy", "tokenizers"), extra)


def line(ms: Mapping[int, float]) -> dict[str, float]:
    """How time grows with length: as a power (exponent), and as a straight line with the largest relative miss."""
    slope, fixed = np.polyfit(list(ms), list(ms.values()), 1)
    return {
        "exponent": float(np.polyfit(np.log(list(ms)), np.log(list(ms.values())), 1)[0]),
        "fixed_ms": float(fixed),
        "ms_per_1024_more": float(slope) * 1024,
        "off_the_line": max(abs(fixed + slope * n - value) / value for n, value in ms.items()),
    }


def by_loop(ids: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The corruption of a text token by token, as one would write it down from the paper."""
    births = rng.random(len(ids) + 1).tolist()
    clock = rng.random()
    kept, counts, pair_slots, pair_tokens = [Tokenised.bos_id], [0], [], []
    for token, birth in zip(ids, births[1:], strict=True):
        if birth <= clock:
            kept.append(token)
            counts.append(0)
        else:
            counts[-1] += 1
            pair_slots.append(len(kept) - 1)
            pair_tokens.append(token)
    lists = {"token_T": kept, "count_S": counts, "pair_slot_K": pair_slots, "pair_token_K": pair_tokens}
    return {name: np.array(values, np.int64) for name, values in lists.items()}


def _same(example: Example, ids: np.ndarray, seed: int) -> None:
    """Raises OneFlowError where the loop finds other targets from the same draws."""
    wanted = by_loop(ids.tolist(), np.random.default_rng(seed))
    for name, array in wanted.items():
        found = example.layout.token_T if name == "token_T" else getattr(example, name)
        if not np.array_equal(found, array):
            raise OneFlowError("benchmark targets", f"the loop finds another {name}", "mend the corruption")


def _least(act: Callable[[], object], count: int) -> float:
    """Milliseconds a call, of the quickest of several batches."""
    found = []
    for _ in range(BATCHES):
        begun = time.process_time()
        for _ in range(count):
            act()
        found.append((time.process_time() - begun) * 1e3 / count)
    return min(found)


def _tokenising(tokens: int, count: int) -> float:
    """Milliseconds for about so many tokens of the shapes corpus, to an array of ids."""
    tokenizer = Tokenizer.from_pretrained("embedded")
    texts = [draw("captions", number, 0).document.texts[0].text for number in range(tokens // 4)]
    text = " ".join(texts)
    size = len(tokenizer.encode(text)) / tokens
    return _least(lambda: np.array(tokenizer.encode(text), np.int64), max(1, count // 20)) / size
