"""What a replica counts about itself, in Prometheus text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """Counters of one replica; `text` is what `/metrics` answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = self.registry
        self.requests = Counter(
            "oneflow_requests", "Requests by status; 499: the client went away.", ("status",), registry=at
        )
        self.segments = Counter("oneflow_segments", "Segments generated, by type.", ("type",), registry=at)
        self.waiting = Gauge("oneflow_waiting", "Requests that wait or are computed.", registry=at)
        self.seconds = Histogram(
            "oneflow_request_seconds", "From arrival to answer.", buckets=SECONDS, registry=at
        )
        self.batch = Histogram(
            "oneflow_batch_requests", "Documents that a step computed together.", buckets=BATCHES, registry=at
        )
        self.queue = Gauge(
            "oneflow_queue_documents", "Documents that wait for a place in the batch.", registry=at
        )
        self.running = Gauge(
            "oneflow_running_documents", "Documents that have a place in the batch.", registry=at
        )
        self.documents = Counter(
            "oneflow_documents",
            "Documents that joined the batch, left it done, were cancelled or failed.",
            ("event",),
            registry=at,
        )
        self.wait = Histogram(
            "oneflow_queue_seconds", "From arrival of a document to its place.", buckets=SECONDS, registry=at
        )
        self.steps = Counter("oneflow_steps", "Steps of the running batch.", registry=at)
        self.step_seconds = Histogram(
            "oneflow_step_seconds", "One step of the running batch.", buckets=STEP_SECONDS, registry=at
        )
        self.tokens = Counter(
            "oneflow_tokens", "Pieces of text generated, of documents that are done.", registry=at
        )
        self.upgrades = Counter(
            "oneflow_upgrades", "Changes of the model served, by outcome.", ("outcome",), registry=at
        )

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
