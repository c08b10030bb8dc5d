"""What a replica counts about itself, in Prometheus text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCHES = (1, 2, 4, 8, 16, 32)


class Meters:
    """Counters of one replica; `text` is what `/metrics` answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "oneflow_requests", "Requests by status.", ("status",), registry=self.registry
        )
        self.segments = Counter(
            "oneflow_segments", "Segments generated, by type.", ("type",), registry=self.registry
        )
        self.waiting = Gauge("oneflow_waiting", "Requests that wait or are computed.", registry=self.registry)
        self.seconds = Histogram(
            "oneflow_request_seconds", "From arrival to answer.", buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "oneflow_batch_requests", "Requests computed together.", buckets=BATCHES, registry=self.registry
        )

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
