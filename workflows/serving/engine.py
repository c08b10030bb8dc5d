"""One replica's work without its wires: a request's bytes in, an answer out, many computed together."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oneflow_core.pipeline import GeneratedDocument, OneFlowPipeline, Prompt
from workflows.serving.meters import Meters
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

FAILED = {"error": {"field": "", "cause": "the server failed", "mend": "see the replica's log"}}


@dataclass(frozen=True, slots=True)
class Job:
    """One request, ready to compute."""

    request: GenerateRequest
    prompt: Prompt
    seed: int


Together = Callable[[Job], Awaitable[GeneratedDocument]]
"""Gives a job to whoever gathers batches, and waits for its document."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP status and a JSON object."""

    status: int
    body: dict[str, Any]


class Engine:
    """A pipeline behind the contract of `POST /v1/generate`."""

    def __init__(self, pipeline: OneFlowPipeline, limits: Limits | None = None) -> None:
        self.pipeline, self.limits = pipeline, limits or Limits()
        self.meters = Meters()
        self.identity = dict(pipeline.identity)

    async def respond(self, body: bytes, together: Together) -> Reply:
        """Answers one request; what it does wrong is a 4xx, what we do wrong a 500, never an exception."""
        started = time.perf_counter()
        try:
            with self.meters.waiting.track_inprogress():
                job = await asyncio.to_thread(self._job, body)
                document = await together(job)
                reply = Reply(200, await asyncio.to_thread(self._answer, job, document, started))
        except BadRequest as refusal:
            reply = Reply(refusal.status, refusal.body)
        except Exception:
            log.exception("a request failed")
            reply = Reply(500, FAILED)
        self.meters.requests.labels(str(reply.status)).inc()
        self.meters.seconds.observe(time.perf_counter() - started)
        return reply

    def compute(self, jobs: Sequence[Job]) -> list[GeneratedDocument]:
        """All documents as one ragged batch; what each is does not depend on the others."""
        self.meters.batch.observe(len(jobs))
        return self.pipeline(
            [job.prompt for job in jobs],
            seeds=[job.seed for job in jobs],
            steps=[job.request.steps for job in jobs],
            guidance=[job.request.guidance for job in jobs],
            temperature=[job.request.temperature for job in jobs],
            max_images=[job.request.max_images for job in jobs],
        )

    def _job(self, body: bytes) -> Job:
        request = parse(body, self.limits)
        parts = tuple(
            part.text if isinstance(part, TextPart) else decode_image(part, f"segments.{i}.data", self.limits)
            for i, part in enumerate(request.segments)
        )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        return Job(request, Prompt(parts, request.target), seed)

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
