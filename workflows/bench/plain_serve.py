"""A plain Ray Serve deployment, as its documentation has one: the model in the replica, one request after the other.

The peer of `oneflow bench serve` without batching: Serve's defaults, the pipeline called in the handler, and the
priority of our replicas.
`python -m workflows.bench.plain_serve MODEL PORT DTYPE DEVICE` serves until it gets SIGTERM.
"""

from __future__ import annotations

import base64
import io
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workflows.corpus.cluster import cluster
from workflows.serving.service import LOOPBACK, NICENESS

if TYPE_CHECKING:
    from starlette.requests import Request


class Plain:
    """Answers as `POST /v1/generate` does, without options."""

    def __init__(self, model: str, dtype: str, device: str) -> None:
        import torch

        from oneflow_core.pipeline import OneFlowPipeline

        torch.set_num_threads(1)
        self._pipeline = OneFlowPipeline.from_pretrained(model, device=device, dtype=getattr(torch, dtype))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """The document that the body asks for; what it is about to any GET."""
        from PIL import Image

        from oneflow_core.pipeline import Prompt
        from workflows.serving.wire import segments_json

        if request.method == "GET":
            return {"model": dict(self._pipeline.identity)}
        asked = await request.json()
        prompt = tuple(
            part["text"]
            if part["type"] == "text"
            else Image.open(io.BytesIO(base64.b64decode(part["data"]))).convert("RGB")
            for part in asked["segments"]
        )
        [document] = self._pipeline(
            [Prompt(prompt, asked["target"])], seeds=asked["seed"], max_images=asked.get("max_images")
        )
        return {
            "segments": segments_json(document.segments),
            "trace": None,
            "model": dict(self._pipeline.identity),
            "seed": asked["seed"],
            "seconds": 0.0,
        }


def main(model: str, port: int, dtype: str, device: str) -> None:
    """Serves on loopback until SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault(NICENESS, "0")
    with suppress(KeyboardInterrupt), cluster():
        from ray import serve

        serve.start(http_options={"host": LOOPBACK, "port": port})
        try:
            actor = {"num_cpus": 1, "num_gpus": int(device == "cuda")}
            plain = serve.deployment(Plain).options(ray_actor_options=actor)
            serve.run(plain.bind(model, dtype, device))
            signal.pause()
        finally:
            serve.shutdown()


if __name__ == "__main__":
    from workflows.bench import plain_serve

    plain_serve.main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
