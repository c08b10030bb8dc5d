"""The Ray Serve application: a replica holds the pipeline, answers HTTP, and computes waiting requests together.

`build` is what a Serve config names as `import_path: workflows.serving.app:build`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from ray import serve
from ray.serve import Application, Deployment

from oneflow_core.pipeline import GeneratedDocument, Prompt
from workflows.serving.wire import (
    BadRequest,
    GenerateRequest,
    Limits,
    TextPart,
    decode_image,
    parse,
    segments_json,
)

log = logging.getLogger("ray.serve")

BATCH = 16
WAIT_S = 0.02
PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

http = FastAPI(title="OneFlow", docs_url=None, redoc_url=None, openapi_url=None)


class ServeArguments(BaseModel):
    """Arguments of the application; strings are enough, so that a Serve config can give them."""

    model: str
    """A directory, an fsspec URL, `models:/name@alias`, or `embedded`."""
    replicas: int = 1
    cpus: float = 1
    """Cores of a replica; also its threads."""
    gpus: float = 0
    """GPUs of a replica; with any, the model is put there."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request, ready to compute."""

    request: GenerateRequest
    prompt: Prompt
    seed: int


@serve.deployment(max_ongoing_requests=4 * BATCH, max_queued_requests=16 * BATCH)
@serve.ingress(http)
class Service:
    """One replica."""

    def __init__(self, model: str, device: str, threads: int) -> None:
        import torch

        from oneflow_core.pipeline import OneFlowPipeline
        from workflows.serving.meters import Meters

        torch.set_num_threads(threads)
        self.pipeline = OneFlowPipeline.from_pretrained(model, device=device)
        self.limits = Limits()
        self.meters = Meters()
        self.identity = dict(self.pipeline.identity)

    @http.post("/v1/generate")
    async def generate(self, request: Request) -> Response:
        """One document: see `wire.GenerateRequest` for the body, `_answer` for the reply."""
        started = time.perf_counter()
        try:
            with self.meters.waiting.track_inprogress():
                job = await asyncio.to_thread(self._job, await _body(request, self.limits.body_bytes))
                document = await self._together(job)
                answer = await asyncio.to_thread(self._answer, job, document, started)
        except BadRequest as refusal:
            self.meters.requests.labels(str(refusal.status)).inc()
            return _json(refusal.body, refusal.status)
        except Exception:
            log.exception("a request failed")
            self.meters.requests.labels("500").inc()
            cause = {"field": "", "cause": "the server failed", "mend": "see the replica's log"}
            return _json({"error": cause}, 500)
        self.meters.requests.labels("200").inc()
        self.meters.seconds.observe(time.perf_counter() - started)
        return _json(answer, 200)

    @http.get("/healthz")
    async def healthz(self) -> Response:
        """200 as soon as a replica holds the model."""
        return _json({"status": "ok", "model": self.identity}, 200)

    @http.get("/metrics")
    async def metrics(self) -> Response:
        """This replica's counters."""
        return Response(self.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @http.get("/")
    async def page(self) -> Response:
        """A page to try the model by hand."""
        return Response(
            PAGE.read_bytes(),
            media_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"},
        )

    def _job(self, body: bytes) -> Job:
        request = parse(body, self.limits)
        parts = tuple(
            part.text if isinstance(part, TextPart) else decode_image(part, f"segments.{i}.data", self.limits)
            for i, part in enumerate(request.segments)
        )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        return Job(request, Prompt(parts, request.target), seed)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def _together(self, jobs: list[Job]) -> list[GeneratedDocument]:
        self.meters.batch.observe(len(jobs))
        return await asyncio.to_thread(self._compute, jobs)

    def _compute(self, jobs: Sequence[Job]) -> list[GeneratedDocument]:
        return self.pipeline(
            [job.prompt for job in jobs],
            seeds=[job.seed for job in jobs],
            steps=[job.request.steps for job in jobs],
            guidance=[job.request.guidance for job in jobs],
            temperature=[job.request.temperature for job in jobs],
            max_images=[job.request.max_images for job in jobs],
        )

    def _answer(self, job: Job, document: GeneratedDocument, started: float) -> dict[str, Any]:
        segments = segments_json(document.segments)
        for segment in segments:
            self.meters.segments.labels(segment["type"]).inc()
        return {
            "segments": segments,
            "trace": document.trace.to_json() if job.request.trace else None,
            "model": self.identity,
            "seed": job.seed,
            "seconds": time.perf_counter() - started,
        }


def build(arguments: ServeArguments) -> Application:
    """The application for `serve run workflows.serving.app:build model=...` and for a RayService."""
    options = {"num_cpus": arguments.cpus, "num_gpus": arguments.gpus}
    device = "cuda" if arguments.gpus else "cpu"
    deployment = cast(Deployment, Service).options(num_replicas=arguments.replicas, ray_actor_options=options)
    return deployment.bind(arguments.model, device, max(1, int(arguments.cpus)))


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise BadRequest(413, "body", f"more than {most} bytes", "send smaller images")
    return bytes(body)


def _json(value: dict[str, Any], status: int) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, media_type="application/json")
