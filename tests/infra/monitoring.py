"""What the dashboard and the alert rules ask Prometheus for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parents[2] / "infra" / "monitoring"
DASHBOARD = DIRECTORY / "grafana" / "oneflow.json"
RULES = DIRECTORY / "rules.yaml"
RAYS = {
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_cpu_utilization",
    "ray_object_store_used_memory",
    "ray_node_network_receive_speed",
    "ray_node_network_send_speed",
}
"""Ray's own names that are used; a test with a real Ray finds them at its metrics port."""
OF_A_GPU = {"ray_node_gpus_utilization"}
NAME = re.compile(r"\b(?:ray|oneflow)_[a-z0-9_]+\b|\bup\b")


def dashboard() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return held


def dashboard_queries() -> list[str]:
    """Every expression of a panel, with a value for each variable."""
    found = [t["expr"] for panel in dashboard()["panels"] for t in panel.get("targets", [])]
    values = {"$__rate_interval": "5m", "$experiment": ".*", "$run": ".*"}
    for name, value in values.items():
        found = [query.replace(name, value) for query in found]
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def names_asked_for() -> set[str]:
    """Metric names in all expressions, without what histograms and counters add to theirs."""
    variables = [v["definition"] for v in dashboard()["templating"]["list"] if "definition" in v]
    queries = [*dashboard_queries(), *variables, *(rule["expr"] for rule in rules())]
    found = {name for query in queries for name in NAME.findall(query)}
    return {re.sub(r"_(bucket|sum|count|total)$", "", name) if "oneflow" in name else name for name in found}
