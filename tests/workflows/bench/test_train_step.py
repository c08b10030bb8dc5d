"""The step and the sampling benchmark at a tiny size: the contract's keys, and that both sides do the same work."""

import pytest
import torch

from oneflow_core.packing import collate
from workflows.bench import sample as sampling
from workflows.bench import train_step

STEP = train_step.Size(
    width=16, layers=1, heads=2, ffn=32, vocab=64, text=32, caption=8, side=4, budget=128, copies=2
)
WRITE = sampling.Size(
    width=16,
    layers=1,
    heads=2,
    ffn=32,
    vocab=64,
    lengths=(8, 20),
    prompt=16,
    side=2,
    image_steps=2,
    batch=2,
)


def test_a_step_tells_the_contracts_keys() -> None:
    told = train_step.run(2, STEP).to_json()
    assert told["text_only"]["ratio"] > 0
    assert told["text_image"]["derived"] == pytest.approx((4 + 4) / (4 + 8))
    assert told["packing"]["loss_difference"] <= 1e-5
    assert told["shared_prompt"]["flops_ratio"] > 0
    assert told["text_only"]["flops_ratio"] < 0.8
    assert len(told["runs"]["ours"]) == 2
    assert torch.get_num_threads() >= 1


def test_padding_changes_no_gradient() -> None:
    side = train_step.Side("oneflow", STEP, "cpu")
    import numpy as np

    from workflows.bench.random_documents import sample, text

    rng = np.random.default_rng(0)
    documents = [sample([text(rng, n, 64)], rng) for n in (3, 17, 9, 30)]
    gradients = []
    for collated in (collate, train_step._padded):
        side.step(documents, 1, collated)
        gradients.append(torch.cat([p.grad.flatten() for p in side.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_generation_tells_the_contracts_keys_and_writes_what_it_knows() -> None:
    told = sampling.run(1, WRITE).to_json()
    assert told["prefix_cache"]["speedup"] > 0 and told["prefix_cache"]["length"] == 8
    assert set(told["captions"]) == {"8", "20"}
    assert set(told["captions"]["20"]["latency_ms"]) == {"full", "uncached", "prefix", "ar"}
    assert told["images"]["ratio"] > 0


def test_a_writer_that_says_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = sampling.Bench(WRITE, "cpu")
    monkeypatch.setattr(sampling, "CERTAIN", 0.0)
    with pytest.raises(ArithmeticError, match="not the text that it knows"):
        bench.caption("ar", 8, 1)
