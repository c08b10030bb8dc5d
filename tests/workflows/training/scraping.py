"""What Prometheus would see at the metrics port of the real Ray of a test."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

Seen = dict[str, dict[frozenset[tuple[str, str]], list[float]]]
"""Values of each series, in the order in which they were scraped, by name and labels."""


@contextmanager
def scraped() -> Iterator[Seen]:
    """Every series at the port of this process's Ray while the context is open."""
    import ray

    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    seen: Seen = defaultdict(lambda: defaultdict(list))
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.3):
            try:
                with urllib.request.urlopen(url, timeout=60) as answer:
                    text = answer.read().decode()
            except (urllib.error.URLError, OSError):
                continue
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    seen[sample.name][frozenset(sample.labels.items())].append(sample.value)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def check_a_run(seen: Seen, run: str, workers: int) -> None:
    """The gauges of one run: named, tagged, few, and with plausible values."""
    ours = {name: series for name, series in seen.items() if "oneflow_train" in name}
    loss = {dict(labels)["part"] for labels in ours["ray_oneflow_train_loss"]}
    assert loss >= {"total", "text_ce", "rate_regret", "zero", "image_mse"}
    ranks = {dict(labels)["rank"] for labels in ours["ray_oneflow_train_step_seconds"]}
    assert ranks == {str(rank) for rank in range(workers)}
    of_the_run = {dict(labels)["rank"] for labels in ours["ray_oneflow_train_tokens_per_second"]}
    assert of_the_run == {"0"}
    for series in ours.values():
        assert {dict(labels)["run"] for labels in series} == {run}
        by_worker = defaultdict(set)
        for labels in series:
            by_worker[dict(labels)["WorkerId"]].add(dict(labels)["part"])
        assert all(len(parts) <= 8 for parts in by_worker.values()), "series must stay few"
    for name in ("tokens_per_second", "learning_rate", "memory_bytes", "mfu_share", "checkpoint_step"):
        assert all(v > 0 for series in ours[f"ray_oneflow_train_{name}"].values() for v in series), name
    for values in ours["ray_oneflow_train_step"].values():
        assert values == sorted(values)
