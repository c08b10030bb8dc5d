"""Random documents, and their corruptions: the one place in the tests of truth that knows what these are called."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from oneflow_core.data.shard import Sample
from oneflow_core.model import ModelConfig
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from oneflow_core.packing import Example
from tests.core.words import TINY, WordTokenizer, image, sample, text

ALL_TARGET = TaskMixture(concurrent=1.0, text_to_image=1.0, prompt_dropout=0.0, story_prompt=0.0)
"""`auto` segments are never given as a prompt."""

ROLES = st.sampled_from(["prompt", "target", "auto"])
IDS = st.lists(st.integers(2, 39), min_size=1, max_size=6)
TEXTS = st.builds(text, IDS, ROLES)
DOCUMENTS = st.one_of(
    st.lists(TEXTS | st.builds(image, ROLES), min_size=1, max_size=6),
    st.lists(st.builds(text, IDS) | st.builds(image), min_size=1, max_size=6),
).map(lambda segments: sample(*segments))
"""Half of them with roles; the others texts, pairs, and stories of texts and images."""
SURE = st.sampled_from([0.0, 1.0])
MIXTURES = st.builds(TaskMixture, concurrent=SURE, text_to_image=SURE, prompt_dropout=SURE, story_prompt=SURE)
"""Mixtures that leave nothing to chance, so that a document's task is known."""


def objective(dims: ModelConfig = TINY, tokenizer: Any = None, **settings: Any) -> OneFlowObjective:
    """The objective with these settings, by default over `ALL_TARGET` and the words of `WordTokenizer`."""
    config = ObjectiveConfig(**{"mixture": ALL_TARGET, **settings})
    return OneFlowObjective(config, dims, tokenizer or WordTokenizer())


def corrupt(made: OneFlowObjective, document: Sample, seed: int | np.random.Generator) -> Example:
    """One corruption of a document."""
    return made.corrupt(document, np.random.default_rng(seed))


def elements_of(example: Example) -> tuple[list[int], list[int], list[list[int]]]:
    """The elements that are left, BOS first: where in the tokens each stands, its id, and its bag."""
    layout = example.layout
    inside = set(layout.patch_N.tolist()) | set(layout.feature_M.tolist())
    places = [p for p in range(len(layout.token_T)) if p not in inside]
    bags: list[list[int]] = [[] for _ in places]
    for slot, token in zip(example.pair_slot_K, example.pair_token_K, strict=True):
        bags[places.index(int(layout.slot_S[slot]))].append(int(token))
    return places, layout.token_T[places].tolist(), bags
