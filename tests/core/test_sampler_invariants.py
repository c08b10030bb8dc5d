"""METHOD section 9 of the sampler: any network, any prompts, watched step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oneflow_core.model import OneFlowModel
from oneflow_core.sampling import Generation, InsertionSampler, Request, SamplerConfig
from oneflow_core.sampling.state import State
from tests.core.words import TINY

FEATURES = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
PROMPTS = st.lists(st.just(FEATURES) | st.lists(st.integers(2, 39), max_size=3).map(tuple), max_size=2)
REQUESTS = st.lists(
    st.builds(
        Request,
        PROMPTS.map(tuple),
        st.sampled_from(["image", "text", "document"]),
        st.sampled_from([(2, 2), (1, 3)]),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=4,
)
CONFIGS = st.builds(
    SamplerConfig,
    steps=st.integers(1, 12),
    step_schedule=st.sampled_from(["linear", "cosine", "power:2"]),
    image_guidance=st.sampled_from([1.0, 2.0]),
    text_guidance=st.sampled_from([0.0, 0.5]),
    fire=st.sampled_from(["gate", "mean", "exact"]),
    flush=st.just(0),
    max_tokens=st.just(30),
)
FEW = settings(deadline=None, max_examples=40)


def talker(told: bool = False, pi_logit: float = 0.0) -> OneFlowModel:
    """A network of random weights that often starts images."""
    torch.manual_seed(3)
    model = OneFlowModel(replace(TINY, text_time=told)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.heads.count.bias[0] = pi_logit
        model.heads.tokens.weight[1] += 0.3
    return model


@dataclass
class Seen:
    """One document after one step."""

    time: float
    tokens: list[int]
    patches: list[Tensor]


def watch(
    model: OneFlowModel, requests: list[Request], config: SamplerConfig
) -> tuple[list[Generation], list[list[Seen]]]:
    """What was made, and every document after every step."""
    steps: list[list[Seen]] = []

    def look(state: State) -> None:
        document_E, owner = state.elements.document_E, np.array(state.image_document, int)
        steps.append(
            [
                Seen(
                    float(state.text_time_B[b]),
                    state.elements.token_E[document_E == b].tolist(),
                    [state.patches[i].clone() for i in np.flatnonzero(owner == b)],
                )
                for b in range(len(requests))
            ]
        )

    return InsertionSampler(model, bos_id=0, image_id=1).generate(requests, config, look), steps


@given(REQUESTS, CONFIGS, st.booleans())
@FEW
def test_at_time_one_the_text_is_frozen_and_two_runs_of_steps_are_enough(
    requests: list[Request], config: SamplerConfig, told: bool
) -> None:
    made, steps = watch(talker(told), requests, config)
    assert len(steps) <= 2 * config.steps
    for b, generation in enumerate(made):
        assert generation.trace.passes <= 2 * config.steps
        seen = [step[b] for step in steps]
        final = [s.tokens for s in seen if s.time >= 1]
        assert all(tokens == final[0] for tokens in final)
        assert sum(s.time < 1 for s in seen) <= config.steps
        assert all(0 <= t < 1 for t in generation.trace.time)


def test_images_still_move_when_the_text_stands_still() -> None:
    requests = [Request((), "document", (2, 2), seed) for seed in range(6)]
    _, steps = watch(talker(), requests, SamplerConfig(steps=6, flush=0, image_guidance=1.0))
    assert 6 < len(steps) <= 12
    late = [step[b] for b in range(6) for step in steps[5:]]
    pairs = [(a, b) for a, b in zip(late, late[1:], strict=False) if a.tokens == b.tokens]
    assert any(not torch.equal(x, y) for a, b in pairs for x, y in zip(a.patches, b.patches, strict=True))


@given(REQUESTS, CONFIGS)
@FEW
def test_prompts_stay_and_nothing_enters_before_their_end(
    requests: list[Request], config: SamplerConfig
) -> None:
    _, steps = watch(talker(), requests, config)
    for b, request in enumerate(requests):
        prompt = [0]
        for part in request.prompt:
            prompt += part if isinstance(part, tuple) else [1]
        assert all(step[b].tokens[: len(prompt)] == prompt for step in steps)
        if request.target == "image":
            assert all(step[b].tokens == [*prompt, 1] for step in steps)


@given(REQUESTS, CONFIGS, st.integers(0, 5))
@FEW
def test_a_network_that_is_sure_that_nothing_is_missing_inserts_nothing(
    requests: list[Request], config: SamplerConfig, flush: int
) -> None:
    made, _ = watch(talker(pi_logit=60.0), requests, replace(config, flush=flush))
    for request, generation in zip(requests, made, strict=True):
        assert generation.trace.token == ((1,) if request.target == "image" else ())
