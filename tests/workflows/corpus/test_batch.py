"""Batches: found within memory, kept, and halved where there is no room after all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.workflows.corpus.inputs import pairs, tar
from tests.workflows.corpus.test_encode import codec, encode, planned, small, stores, units_of
from workflows.corpus.batch import batch_url, batch_urls, found_batches, trial
from workflows.corpus.digests import to_hex
from workflows.corpus.encoded import read_encoded
from workflows.corpus.models import load_models
from workflows.storage import read_json, write_json

__all__ = ["codec"]
MB = 1_000_000
ROOM = 10**12


def test_the_trial_keeps_within_memory_and_takes_what_is_quick(codec: str, tmp_path: Path) -> None:
    model = load_models((small(tmp_path, codec).encode.codec, None), "cpu")["latents"]
    assert trial(model, (128, 128), 1, most=64).images == 1, "one goes through in any case"
    limit = 40 * MB
    little = trial(model, (128, 128), limit, most=64)
    assert max(little.rates) < 64 and all(little.memory[n] <= limit for n in little.rates if n > 1)
    found = trial(model, (128, 128), ROOM, most=32)
    assert list(found.rates) == [2**i for i in range(len(found.rates))] and max(found.rates) <= 32
    assert found.rates[found.images] >= 0.95 * max(found.rates.values())


def test_a_batch_is_found_once_and_kept(codec: str, tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 9))
    config = small(tmp_path, codec, batch_size="auto", batch_gb=1.0)
    units, where = units_of(config), stores(config)
    found = found_batches(config, where, limit=1)
    url = batch_url(where[0].folder, "cpu")
    assert found == {"latents": read_json(url)["images"]} and batch_urls(config, where) == (url,)
    write_json(url, {"images": 2})
    assert found_batches(config, where, limit=1) == {"latents": 2}, "every later run takes what is kept"
    encode(config, planned(config, where, units).jobs, where, {"latents": 2})
    store = stores(config)[0]
    assert len(store.images) == 9
    usual = small(tmp_path / "other", codec)
    tar(tmp_path / "other" / "raw" / "a.tar", pairs(0, 9))
    encode(usual, planned(usual, stores(usual)).jobs, stores(usual))
    ours, others = (read_encoded(s.parts, set(to_hex(s.images))) for s in (store, stores(usual)[0]))
    for sha256, latent in ours.items():
        np.testing.assert_allclose(latent, others[sha256], rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by setrlimit of Linux")
def test_without_room_for_a_batch_it_goes_on_in_halves(codec: str, tmp_path: Path) -> None:
    """In a process that may take no more than a part of what the batch needs."""
    program = f"""
import resource
import numpy as np
from workflows.corpus.cluster import Environment
from workflows.corpus.encoder import Encoder
from tests.workflows.corpus.test_encode import small

config = small({str(tmp_path)!r}, {codec!r})
encoder = Encoder(config, {{}}, {{"latents": 64}}, 0, Environment.of_driver())
pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), np.uint8)
usual = encoder._arrays("latents", pixels[:8])
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 60_000_000, -1))
found = encoder._arrays("latents", pixels)
assert encoder._most["latents"] < 64, encoder._most
np.testing.assert_allclose(found[:8], usual, rtol=2e-3, atol=2e-3)
print(encoder._most["latents"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 1 <= int(done.stdout) < 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_lies_apart_and_is_near(codec: str, tmp_path: Path, dtype: str) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 5))
    config, half = small(tmp_path, codec), small(tmp_path, codec, dtype=dtype)
    assert config.digest() != half.digest()
    units = units_of(config)
    for one in (config, half):
        encode(one, planned(one, stores(one), units).jobs, stores(one))
    full, rough = stores(config)[0], stores(half)[0]
    assert full.folder != rough.folder and len(full.images) == len(rough.images) == 5
    near, exact = (read_encoded(s.parts, set(to_hex(s.images))) for s in (rough, full))
    error = np.concatenate([np.ravel(near[s].astype(np.float32) - exact[s]) for s in exact])
    scale = np.concatenate([np.ravel(exact[s]) for s in exact]).astype(np.float32).std()
    assert 0 < np.abs(error).mean() < 0.05 * scale
