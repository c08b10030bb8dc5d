"""The plan beside the truth, by the benchmark's own pieces."""

import pytest
import torch

from workflows.bench.plan_check import Size, run

DIMS = {"width": 64, "heads": 4, "kv_heads": 2, "ffn": 128, "layers": 2}


def test_what_is_held_on_a_cpu_is_planned_to_the_byte_and_rates_are_told() -> None:
    size = Size("nano", DIMS, tokens=400, caption=32, side=8, variants=("plain", "full"), precision="fp32")
    told = run(1, size=size).to_json()
    assert told["ratio"] == 1.0 and told["mfu"] is None
    for row in told["variants"].values():
        assert row["planned_bytes"] == row["measured_bytes"]
        assert row["tokens_per_s"] > 0 and row["step_s"]["p50"] <= row["step_s"]["max"]
    plain, full = told["variants"].values()
    assert plain["last_loss"] == full["last_loss"] != plain["first_loss"]


@pytest.mark.gpu
def test_memory_on_a_gpu_is_near_the_plan() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    dims = {"width": 1024, "heads": 16, "kv_heads": 8, "ffn": 4096, "layers": 8, "vocab_size": 32_000}
    told = run(1, "cuda", Size("nano", dims, tokens=16_384, variants=("plain", "full"))).to_json()
    for row in told["variants"].values():
        assert 0.85 < row["plan_by_measured"] < 1.15
        assert row["first_loss"] == pytest.approx(
            row.get("first_loss_by_rectangles", row["first_loss"]), 0.01
        )
