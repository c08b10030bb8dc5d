"""The step benchmark: our side and the floor at a tiny size; the peer's own process where it is installed."""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from workflows.bench import peers
from workflows.bench.child import Child
from workflows.bench.oneflow_step import oneflow_step, used_parameters
from workflows.bench.pairs import Sizes, draw
from workflows.bench.peer_transfusion import SHAPES, measure
from workflows.bench.plain import Block, Kept, Plain
from workflows.errors import OneFlowError

TINY = Sizes(
    layers=2,
    heads=2,
    head_dim=8,
    peer_heads=2,
    peer_width=16,
    vocabulary=50,
    text=12,
    side=4,
    channels=4,
    batch=3,
)
PEER = "workflows.bench.transfusion:step"


def test_our_side_and_the_floor_tell_the_contracts_keys() -> None:
    def yardstick(seed: int) -> dict:
        return {"seconds": 0.5, "parameters": 9000, "vocabulary": 50, "version": "none"}

    told = measure(2, TINY, "cpu", yardstick).to_json()
    keys = {
        "name",
        "ours",
        "peer",
        "unit",
        "runs",
        "machine",
        "versions",
        "ratio",
        "floor_ratio",
        "parameters",
    }
    assert keys <= set(told)
    assert {name: len(values) for name, values in told["runs"].items()} == dict.fromkeys(
        ("ours", "peer", "floor", "ar_fm"), 2
    )
    assert told["reported"]["ar_fm"] > 0
    assert told["ratio"] == pytest.approx(told["ours"] / 0.5)
    assert told["tokens"]["clean"] == 12 + 16
    assert 17 <= told["tokens"]["ours"] <= 12 + 16 + 2
    assert abs(told["parameters"]["ours"] / 9000 - 1) < 0.01


def test_parameters_are_matched_or_refused() -> None:
    step = oneflow_step(TINY, 30_000, "cpu")
    assert used_parameters(step.model) == pytest.approx(30_000, rel=0.01)
    with pytest.raises(OneFlowError, match="more parameters than the peer"):
        oneflow_step(TINY, 1_000, "cpu")


def test_both_modalities_of_every_pair_are_trained_on() -> None:
    step = oneflow_step(TINY, 9000, "cpu")
    _, pack = step.take(draw(TINY, 0), 0)
    assert pack.documents == pack.texts == 3
    assert pack.text_targets == 3 * 12
    assert len(pack.flow_N) == 3 * 16
    assert pack.flow_N.all()
    missing = int(pack.count_S.sum())
    assert pack.tokens == 3 * (1 + 12 + 1 + 16) - missing
    assert all(p.grad is not None for p in step.model.parameters())


def test_the_floor_is_a_transformer_in_which_documents_see_themselves_alone() -> None:
    torch.manual_seed(0)
    step = oneflow_step(TINY, 9000, "cpu")
    block, lengths = Block(step.model.config), [3, 5, 2]
    x_TD = torch.randn(10, 16)
    document_T = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    q, k, v = block.qkv(block.attention_norm(x_TD)).view(10, 3, 2, 8).permute(1, 2, 0, 3)
    seen_TT = document_T[:, None] == document_T
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TT).transpose(0, 1).flatten(1)
    y_TD = x_TD + block.out(attended)
    gate, up = block.gate_up(block.ffn_norm(y_TD)).chunk(2, -1)
    torch.testing.assert_close(block(x_TD, lengths), y_TD + block.down(F.silu(gate) * up))


def test_the_floor_learns_what_it_is_given() -> None:
    torch.manual_seed(0)
    step = oneflow_step(TINY, 9000, "cpu")
    kept = Kept.of(step.take(draw(TINY, 0), 0)[1])
    assert sum(kept.lengths) == len(kept.token_T)
    floor = Plain(step.model.config, longest=40)
    optimiser = torch.optim.Adam(floor.parameters(), lr=2e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = floor(kept)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_step_of_the_peer_is_told_by_its_own_process() -> None:
    place = peers.standing()
    if place is None:
        pytest.skip("transfusion-pytorch is not in build/peers; oneflow bench peer-transfusion installs it")
    with Child(PEER, {"sizes": asdict(TINY), "device": "cpu"}, [place]) as child:
        told = [child.ask(seed=seed) for seed in (0, 0, 1)]
    assert all(answer["seconds"] > 0 and math.isfinite(answer["loss"]) for answer in told)
    assert {answer["parameters"] for answer in told} == {told[0]["parameters"]}
    assert told[0]["vocabulary"] > TINY.vocabulary
    with_ours = oneflow_step(TINY, told[0]["parameters"], "cpu")
    assert used_parameters(with_ours.model) == pytest.approx(told[0]["parameters"], rel=0.01)


def test_the_shapes_that_are_compared_have_32_million_parameters() -> None:
    for sizes in SHAPES.values():
        assert used_parameters(oneflow_step(sizes, 32_000_000, "cpu").model) == pytest.approx(32e6, rel=0.01)
        assert (sizes.text, sizes.side, sizes.channels, sizes.batch) == (128, 16, 16, 4)
