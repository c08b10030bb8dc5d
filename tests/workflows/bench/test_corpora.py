"""The benchmarks of corpora, on a handful of images: their keys, and that what they time was done."""

import pytest

from workflows.bench import encode, rebuild
from workflows.bench.tree_memory import held_now, watched


def test_encode_tells_its_keys() -> None:
    told = encode.run(1, size=encode.Size(images=64, flood=16, flood_side=64)).to_json()
    assert told["name"] == "encode" and told["unit"] == "images/s" and told["ratio"] > 0
    assert {"ratio_with_startup", "memory_mib", "memory_ratio", "share_of_peak", "gflop_per_image"} <= set(
        told
    )
    assert told["images"] == {"few": 64, "many": 256} and told["memory_mib"]["few"] > 100
    assert set(told["runs"]) == {"ours", "peer", "job_with_startup", "loop_with_startup"}


def test_rebuild_does_what_changed_alone() -> None:
    told = rebuild.run(1, size=rebuild.Size(files=4, documents=3, channels=(32, 32, 32, 32))).to_json()
    assert told["share"] == pytest.approx(told["ours"] / told["peer"])
    assert told["done"]["files"] == 1 and told["done"]["images"] == 3
    assert told["reused"]["files"] == 3 and told["reused"]["images"] == 9


def test_memory_of_the_tree_sees_what_is_held() -> None:
    before = held_now() / 2**20
    with watched() as height:
        held = bytearray(200 << 20)
        held[::4096] = b"x" * len(held[::4096])
        import time

        time.sleep(1)
        del held
    assert 150 < height.mib - before < 400
