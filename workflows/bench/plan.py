"""What a corpus of 400 million image-text pairs at 256 pixels takes: from rates measured here and from assumptions.

`plan` gives the measured inputs, the assumed ones, and the table of docs/scale.md that follows from both; a GPU's rate
is its assumed peak and share over the FLOPs that are counted.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from oneflow_core.data.reader import ShardReader
from oneflow_core.data.shard import write_shard
from workflows.bench.loader_corpus import KINDS, make_sample

PAIRS = 400_000_000
ASSUMED: Mapping[str, float] = {
    "source_image_bytes": 45_000,
    "source_text_bytes": 600,
    "kept_share": 0.85,
    "duplicate_share": 0.1,
    "source_tar_samples": 10_000,
    "part_rows": 4_096,
    "shard_bytes": 512e6,
    "gpu_peak_flops": 989e12,
    "vae_share_of_peak": 0.138,
    "vit_share_of_peak": 0.233,
    "job_overhead": 2.0,
    "usd_gpu_hour": 2.50,
    "usd_cpu_hour": 0.04,
    "usd_gb_month": 0.023,
    "usd_1000_put": 0.005,
    "usd_1000_get": 0.0004,
}
"""Each with its reason in docs/scale.md; the shares of a GPU's peak were measured on one (docs/benchmarks.md)."""
SD3_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SIGLIP2_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 256,
    "patch_size": 16,
}


def plan() -> dict[str, Any]:
    """Measured inputs, assumed inputs, and what follows."""
    measured = _measured()
    return {"measured": measured, "assumed": dict(ASSUMED), "table": table(measured, ASSUMED)}


def table(m: Mapping[str, float], a: Mapping[str, float]) -> dict[str, float]:
    """Bytes, requests, hours and money; the arithmetic of docs/scale.md."""
    documents = PAIRS * a["kept_share"]
    images = documents * (1 - a["duplicate_share"])
    source = PAIRS * (a["source_image_bytes"] + a["source_text_bytes"])
    latents, features = images * m["latent_bytes"], images * m["features_bytes"]
    shard = documents * m["sample_tar_bytes"]
    shards = shard / a["shard_bytes"]
    ingest = PAIRS * m["ingest_cpu_us"] * a["job_overhead"] / 3.6e9
    decode = images * m["decode_cpu_us"] * a["job_overhead"] / 3.6e9
    write = documents * m["shard_cpu_us"] * a["job_overhead"] / 3.6e9
    vae_s = m["vae_flops"] / (a["gpu_peak_flops"] * a["vae_share_of_peak"])
    vit_s = m["vit_flops"] / (a["gpu_peak_flops"] * a["vit_share_of_peak"])
    gpu = images * (vae_s + vit_s) / 3600
    gets = 2 * PAIRS / a["source_tar_samples"] + 3 * documents / a["part_rows"]
    puts = (documents + 2 * images) / a["part_rows"] + 2 * shards
    stored = latents + features + shard
    return {
        "documents": documents,
        "images_encoded": images,
        "source_tb": source / 1e12,
        "latents_tb": latents / 1e12,
        "features_tb": features / 1e12,
        "shards_tb": shard / 1e12,
        "indexes_gb": documents * m["index_bytes"] / 1e9,
        "manifest_mb": shards * m["manifest_bytes_a_shard"] / 1e6,
        "shards": shards,
        "get_requests": gets,
        "put_requests": puts,
        "ingest_cpu_hours": ingest,
        "decode_cpu_hours": decode,
        "shard_cpu_hours": write,
        "gpu_hours": gpu,
        "images_a_gpu_second": 1 / (vae_s + vit_s),
        "cpus_a_gpu_to_decode": m["decode_cpu_us"] * a["job_overhead"] / 1e6 / (vae_s + vit_s),
        "source_mb_a_gpu_second": a["source_image_bytes"] / 1e6 / (vae_s + vit_s),
        "epoch_read_cpu_hours": documents * m["read_cpu_us"] / 3.6e9,
        "usd_gpu": gpu * a["usd_gpu_hour"],
        "usd_cpu": (ingest + decode + write) * a["usd_cpu_hour"],
        "usd_requests": puts / 1000 * a["usd_1000_put"] + gets / 1000 * a["usd_1000_get"],
        "usd_storage_month": stored / 1e9 * a["usd_gb_month"],
        "usd_source_month": source / 1e9 * a["usd_gb_month"],
    }


def _measured() -> dict[str, float]:
    kind, rng = KINDS["features"], np.random.default_rng(0)
    samples = [make_sample(f"plan-{i:09d}", kind, rng) for i in range(64)]
    shard = write_shard(samples)
    index = shard.index.to_bytes()
    reader = ShardReader(shard.data, shard.index)
    jpeg = _jpeg(rng)
    return {
        "latent_bytes": samples[0].latents[0].nbytes,
        "features_bytes": samples[0].features[0].nbytes,
        "sample_tar_bytes": len(shard.data) / len(samples),
        "index_bytes": len(index) / len(samples),
        "manifest_bytes_a_shard": _manifest_bytes(),
        "jpeg_bytes": len(jpeg),
        "ingest_cpu_us": _cpu_us(lambda: _ingest(jpeg), 200),
        "decode_cpu_us": _cpu_us(lambda: _decode(jpeg), 100),
        "shard_cpu_us": _cpu_us(lambda: write_shard(samples).index.to_bytes(), 5) / len(samples),
        "read_cpu_us": _cpu_us(lambda: list(reader), 5) / len(samples),
        "vae_flops": _flops(_vae),
        "vit_flops": _flops(_vit),
    }


def _cpu_us(act: Callable[[], object], count: int) -> float:
    """Microseconds of CPU a call, of the quickest of three batches."""
    found = []
    for _ in range(3):
        begun = time.process_time()
        for _ in range(count):
            act()
        found.append((time.process_time() - begun) / count * 1e6)
    return min(found)


def _jpeg(rng: np.random.Generator) -> bytes:
    """A picture of 512 by 384 pixels, smooth with some noise, as photographs are."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
        (512, 384), Image.Resampling.BICUBIC
    )
    noisy = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (384, 512, 3)).astype(np.int16), 0, 255)
    stream = io.BytesIO()
    Image.fromarray(noisy.astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _ingest(jpeg: bytes) -> None:
    """What ingest does with a pair that is a must: digest, size of the image, its JSON."""
    from PIL import Image

    hashlib.sha256(jpeg).hexdigest()
    with Image.open(io.BytesIO(jpeg)) as image:
        size = image.size
    json.loads(json.dumps({"size": size, "caption": "a photograph " * 10}))


def _decode(jpeg: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        image.draft("RGB", (256, 256))
        image.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC).tobytes()


def _manifest_bytes() -> float:
    import tempfile
    from pathlib import Path

    from workflows.bench.synthetic import write_manifest

    with tempfile.TemporaryDirectory() as made:
        write_manifest(Path(made) / "m", "plan", 20_000)
        return sum(path.stat().st_size for path in (Path(made) / "m").iterdir()) / 20_000


def _flops(forward: Callable[[], object]) -> float:
    """FLOPs of a pass for one image, on torch's meta device: shapes alone."""
    import torch

    from workflows.bench.flops import flop_counter

    counter = flop_counter()
    with torch.device("meta"), torch.no_grad(), counter:
        forward()
    return float(counter.get_total_flops())


def _vae() -> object:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**SD3_VAE).encoder(torch.empty(1, 3, 256, 256))


def _vit() -> object:
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**SIGLIP2_BASE))(torch.empty(1, 3, 256, 256))
