"""Dashboard and alerts ask for what is exported, Prometheus takes them, and the alerts fire when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from tests.infra.monitoring import (
    DIRECTORY,
    OF_A_GPU,
    RAYS,
    RULES,
    dashboard,
    dashboard_queries,
    names_asked_for,
    rules,
)
from workflows.serving.meters import Meters
from workflows.training.exporter import GAUGES

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool (apt-get install prometheus)")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_what_is_exported_is_asked_for_and_all_gauges_are_shown() -> None:
    served = {family.name for family in Meters().registry.collect()}
    trained = {f"ray_{name}" for name in GAUGES}
    asked = names_asked_for()
    assert asked - served - trained - RAYS - OF_A_GPU == {"up"}
    assert asked >= RAYS
    kept_for_others = {"ray_oneflow_train_checkpoint_step"}
    assert trained - asked == kept_for_others


def test_panels_lie_beside_each_other_and_use_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    variables = {v["name"] for v in dashboard()["templating"]["list"]}
    for panel in panels:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            used = {n for n in re.findall(r"\$\{?(\w+)", target["expr"]) if not n.startswith("__")}
            assert used <= variables
            if "_train_" in target["expr"]:
                assert used == {"experiment", "run"}, "a panel that does not follow the chosen run"


def test_the_rules_of_kubernetes_are_those_of_prometheus() -> None:
    held = yaml.safe_load((DIRECTORY / "prometheusrule.yaml").read_text())
    assert held["spec"]["groups"] == yaml.safe_load(RULES.read_text())["groups"]
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= set(rule["annotations"])


def test_the_kustomization_names_files_that_are_there_and_pods_that_are_rendered() -> None:
    held = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
    files = [*held["resources"], *(f for g in held["configMapGenerator"] for f in g["files"])]
    assert all((DIRECTORY / name).is_file() for name in files)
    monitors = list(yaml.safe_load_all((DIRECTORY / "podmonitor.yaml").read_text()))
    base = DIRECTORY.parent / "kuberay" / "base"
    pod = yaml.safe_load((base / "train-shapes.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]
    labels = pod["template"]["metadata"]["labels"]
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"]
        ours = {name: value for name, value in wanted.items() if not name.startswith("ray.io/")}
        assert ours.items() <= labels.items()
    named = {port["name"] for c in pod["template"]["spec"]["containers"] for port in c["ports"]}
    assert {m["spec"]["podMetricsEndpoints"][0]["port"] for m in monitors} <= named | {"metrics"}


@needs_promtool
def test_prometheus_takes_configuration_rules_and_every_query(tmp_path: Path) -> None:
    promtool("check", "config", DIRECTORY / "prometheus.yml")
    queries = [{"record": f"panel:{n}", "expr": q} for n, q in enumerate(dashboard_queries())]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    promtool("check", "rules", tmp_path / "queries.yaml")


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    told = {"run": "a", "rank": "0", "instance": "node", **labels}
    selector = ", ".join(f'{label}="{value}"' for label, value in told.items())
    return {"series": f"{name}{{{selector}}}", "values": values}


def at(minute: int, alert: str, fires: bool = False, **labels: str) -> dict[str, object]:
    """That `alert` fires at that minute with these labels, or not at all without any (unless `fires`)."""
    severity = next(rule["labels"]["severity"] for rule in rules() if rule["alert"] == alert)
    expected = [{"exp_labels": {"severity": severity, **labels}}] if labels or fires else []
    return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}


TRAIN = "ray_oneflow_train"


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    """Run a stops stepping after 20 minutes; b steps on, and has ended; values are one a minute."""
    stopped, going = "0+60x20 1200x70", "0+60x90"
    held = [
        series(f"{TRAIN}_logged_timestamp_seconds", stopped),
        series(f"{TRAIN}_logged_timestamp_seconds", going, run="b"),
        series(f"{TRAIN}_logged_timestamp_seconds", stopped, run="ended"),
        *(series(f"{TRAIN}_log_interval_seconds", "60x90", run=run) for run in ("a", "b", "ended")),
        *(series(f"{TRAIN}_progress_share", "0.5x90", run=run) for run in ("a", "b")),
        series(f"{TRAIN}_progress_share", "1x90", run="ended"),
        series(f"{TRAIN}_checkpoint_timestamp_seconds", "600x90"),
        series(f"{TRAIN}_checkpoint_timestamp_seconds", "0+60x90", run="b"),
        *(series(f"{TRAIN}_data_wait_share", "0.01x20 0.2x70", rank=rank) for rank in ("0", "1")),
        series(f"{TRAIN}_data_wait_share", "0.01x90", run="b"),
        series(f"{TRAIN}_skipped_steps", "0x30 3x60"),
        series(f"{TRAIN}_goodput_share", "0.95x90", run="b"),
        series(f"{TRAIN}_goodput_share", "0.5x90"),
        series("up", "1x20 0x70", job="ray"),
        series("oneflow_request_seconds_bucket", "0+1x90", le="60"),
        series("oneflow_request_seconds_bucket", "0+0x90", le="30"),
        series("oneflow_request_seconds_bucket", "0+1x90", le="+Inf"),
    ]
    node = {"job": "ray", "instance": "node", "run": "a", "rank": "0"}
    checks = [
        at(29, "OneflowTrainingStalled"), at(32, "OneflowTrainingStalled", run="a"),
        at(69, "OneflowCheckpointOld"), at(72, "OneflowCheckpointOld", run="a"),
        at(29, "OneflowDataWait"), at(45, "OneflowDataWait", run="a"),
        at(29, "OneflowStepsSkipped"), at(33, "OneflowStepsSkipped", run="a"), at(45, "OneflowStepsSkipped"),
        at(50, "OneflowGoodputLow"), at(61, "OneflowGoodputLow", run="a"),
        at(22, "OneflowRayNodeNotScraped"), at(27, "OneflowRayNodeNotScraped", **node),
        at(5, "OneflowServingSlow"), at(20, "OneflowServingSlow", fires=True),
    ]  # fmt: skip
    for check in checks:
        for alert in check["exp_alerts"]:  # type: ignore[attr-defined]
            alert["exp_annotations"] = {}
    plain = yaml.safe_load(RULES.read_text())
    for group in plain["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(plain))
    test = {"interval": "1m", "input_series": held, "alert_rule_test": checks}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    promtool("test", "rules", tmp_path / "test.yaml")
    promtool("check", "rules", RULES)
