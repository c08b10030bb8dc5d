"""The benchmarks of corpora on a handful of images: what they time was done, and what they count is so."""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from workflows.bench import encode, rebuild
from workflows.bench.captioned import write_tar


def test_the_bare_loop_encodes_in_processes_of_its_own() -> None:
    rate, start = encode._loop(encode.Size(), "cpu", processes=2, images=128)
    assert rate > 1 and start > 0.5, "a process that imports torch takes its time"


def test_flops_grow_with_the_pixels() -> None:
    """Convolutions do; the attention in the middle of the network, with the square of them, is little here."""
    small, large = encode._flops(encode.Size(side=64)), encode._flops(encode.Size(side=128))
    assert small > 1e7 and large / small == pytest.approx(4, rel=0.1)


def test_pictures_are_distinct_and_the_same_each_time(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", (0, 0)), ("b", (0, 0)), ("c", (1, 0))):
        write_tar(tmp_path / name, 20, seed)
        with tarfile.open(tmp_path / name) as archive:
            pictures = [archive.extractfile(m) for m in archive if m.name.endswith(".png")]
            found.append({hashlib.sha256(p.read()).hexdigest() for p in pictures if p is not None})
    a, b, c = found
    assert a == b and len(a) == 20 and not a & c


def test_rebuild_does_what_changed_alone() -> None:
    told = rebuild.run(
        1, size=rebuild.Size(files=4, documents=3, changed=1, channels=(32, 32, 32, 32))
    ).to_json()
    assert told["share"] == pytest.approx(told["ours"] / told["peer"])
    assert told["done"]["files"] == 1 and told["done"]["images"] == 3
    assert told["reused"]["files"] == 3 and told["reused"]["images"] == 9


HOLD = """
import time
from workflows.bench.tree_memory import held_now, watched

before = held_now() / 2**20
with watched() as height:
    held = bytearray(200 << 20)
    held[::4096] = b"x" * len(held[::4096])
    deadline = time.monotonic() + 60
    while height.mib - before <= 150 and time.monotonic() < deadline:
        time.sleep(0.05)
print(height.mib - before)
"""


def test_memory_of_the_tree_sees_what_is_held() -> None:
    """In a process of its own: what other tests started may end meanwhile, and take its memory out of the sum."""
    told = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=True)
    assert 150 < float(told.stdout) < 400
