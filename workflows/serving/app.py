"""The Ray Serve application: a replica holds the pipeline, answers HTTP, and computes waiting requests together.

`build` is what a Serve config names as `import_path: workflows.serving.app:build`.
"""

# Annotations stay values here: FastAPI reads them in a replica, where the strings' names may not resolve.
import asyncio
import json
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from ray import serve
from ray.serve import Application, Deployment

from oneflow_core.pipeline import GeneratedDocument
from workflows.corpus.cluster import Environment
from workflows.serving.engine import Engine, Job, Reply
from workflows.serving.page.routes import router as page

BATCH = 16
WAIT_S = 0.02

http = FastAPI(title="OneFlow", docs_url=None, redoc_url=None, openapi_url=None)
http.include_router(page)


class ServeArguments(BaseModel):
    """Arguments of the application; strings are enough, so that a Serve config can give them."""

    model: str
    """A directory, an fsspec URL, `models:/name@alias`, or `embedded`."""
    replicas: int = 1
    cpus: float = 1
    """Cores of a replica; also its threads."""
    gpus: float = 0
    """GPUs of a replica; with any, the model is put there."""


async def read_body(request: Request, most: int) -> bytes:
    """The body, or its first `most` + 1 bytes. The rest is taken off the wire for a while: who sends hears nothing."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        body += chunk[: most + 1 - len(body)]
        size += len(chunk)
        if size > 4 * most:
            break
    return bytes(body)


def as_json(status: int, value: dict[str, Any]) -> Response:
    """A JSON response."""
    return Response(json.dumps(value, ensure_ascii=False), status, media_type="application/json")


# What the methods use stands above the class: ingress pickles the routes by value, at this very line.
@serve.deployment(
    max_ongoing_requests=4 * BATCH, max_queued_requests=16 * BATCH, max_constructor_retry_count=1
)
@serve.ingress(http)
class Service:
    """One replica."""

    def __init__(self, model: str, device: str, threads: int, environment: Environment) -> None:
        environment.apply()
        import torch

        from oneflow_core.pipeline import OneFlowPipeline

        torch.set_num_threads(threads)
        self.engine = Engine(OneFlowPipeline.from_pretrained(model, device=device))

    @http.post("/v1/generate")
    async def generate(self, request: Request) -> Response:
        """One document: `wire.GenerateRequest` in, `Engine.respond` out."""
        body = await read_body(request, self.engine.limits.body_bytes)
        reply: Reply = await self.engine.respond(body, self._together)
        return as_json(reply.status, reply.body)

    @http.get("/healthz")
    async def healthz(self) -> Response:
        """200 as soon as a replica holds the model."""
        return as_json(200, {"status": "ok", "model": self.engine.identity})

    @http.get("/metrics")
    async def metrics(self) -> Response:
        """This replica's counters."""
        return Response(self.engine.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def _together(self, jobs: list[Job]) -> list[GeneratedDocument]:
        return await asyncio.to_thread(self.engine.compute, jobs)


def build(arguments: ServeArguments) -> Application:
    """The application for `serve run workflows.serving.app:build model=...` and for a RayService."""
    options = {"num_cpus": arguments.cpus, "num_gpus": arguments.gpus}
    device = "cuda" if arguments.gpus else "cpu"
    deployment = cast(Deployment, Service).options(num_replicas=arguments.replicas, ray_actor_options=options)
    threads = max(1, int(arguments.cpus))
    return deployment.bind(arguments.model, device, threads, Environment.of_driver())
