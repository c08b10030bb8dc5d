"""A replica on a GPU: what it answers is what the pipeline makes there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_core.pipeline import OneFlowPipeline, Prompt
from workflows.bench.serve import prompts
from workflows.client import Client
from workflows.serving.service import serving

pytestmark = pytest.mark.gpu
DTYPES = {"auto": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_replica_on_a_gpu_makes_what_the_pipeline_makes_there(cluster: Path, dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    items = [item for kind in ("caption", "t2i") for item in prompts(kind, 4)]
    pipeline = OneFlowPipeline.from_pretrained("embedded", device="cuda", dtype=DTYPES[dtype])
    free = torch.cuda.mem_get_info()[0]
    with serving("embedded", gpus=1, dtype=dtype) as url, Client(url) as client:
        assert free - torch.cuda.mem_get_info()[0] > 100 << 20
        for item in items:
            asked = {"target": item.target, "seed": item.seed, "max_images": item.max_images}
            answer = client.generate(item.prompt, **asked)
            given = tuple(
                p if isinstance(p, str) else Image.open(io.BytesIO(p)).convert("RGB") for p in item.prompt
            )
            (made,) = pipeline([Prompt(given, item.target)], seeds=item.seed, max_images=item.max_images)
            assert answer.text == made.text
            for theirs, ours in zip(answer.images, made.images, strict=True):
                assert np.array_equal(np.asarray(theirs), np.asarray(ours))
