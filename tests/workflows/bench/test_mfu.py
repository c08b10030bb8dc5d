"""The share of the machine's arithmetic: its FLOPs against those that torch counts."""

import numpy as np
import pytest
import torch

from oneflow_core.flops import NeededFlops
from oneflow_core.model import PRESETS, OneFlowModel
from oneflow_core.objectives import ObjectiveConfig, OneFlowObjective
from oneflow_core.objectives.tasks import TaskMixture
from workflows.bench import mfu
from workflows.bench.flops import flop_counter
from workflows.bench.random_documents import Ids, packed_pairs

SIZE = mfu.Size("nano", tokens=1024, side=8, caption=112, matrix=64)


def test_needed_flops_are_those_of_the_products() -> None:
    """Torch counts the products alone: padding makes it more, the norms and biases of the formula less."""
    dims = PRESETS["nano"]
    config = ObjectiveConfig(mixture=TaskMixture(concurrent=1.0, prompt_dropout=0.0))
    objective = OneFlowObjective(config, dims, Ids(dims.vocab_size))  # type: ignore[arg-type]
    pack, model = packed_pairs(objective, SIZE.tokens, SIZE.caption, SIZE.side, 0), OneFlowModel(dims)
    with flop_counter() as counter:
        objective.loss(model, pack, objective.normalisers(pack)).total.backward()
    assert NeededFlops.of(model).of_pack(pack) == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_it_tells_the_contracts_keys() -> None:
    told = mfu.run(2, size=SIZE).to_json()
    assert told["mfu"] is None and told["variant"] == "plain"
    assert told["ratio"] > 0
    assert told["tokens_per_s"]["plain"] > 0
    assert len(told["runs"]["ours"]) == 2


@pytest.mark.gpu
def test_a_gpu_is_measured_in_bf16() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    told = mfu.run(2, "cuda", SIZE).to_json()
    assert told["dtype"] == "torch.bfloat16" and np.isfinite(told["ratio"])
    assert told["memory_gib"]["plain"] > 0


def test_attention_is_counted_by_its_closed_form() -> None:
    q, k = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8, requires_grad=True)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, k).sum().backward()
    products = 2 * 2 * 3 * 5 * 7 * 8
    assert counter.get_total_flops() == 2 * products + 5 * products
