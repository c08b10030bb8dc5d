"""The preset of charts that MLflow's page of an experiment opens with: a shared view, kept as a tag of the experiment.

MLflow 3 keeps a view as the tag `mlflow.sharedViewState.<key>`: JSON with a name, two times and the page's state,
deflated and in base64. The menu of views lists it, and a link with `viewStateShareKey=<key>` opens it.
"""

import base64
import json
import zlib
from typing import Any

KEY = "oneflow-training"
TITLE = "OneFlow training"
TAG = f"mlflow.sharedViewState.{KEY}"
WRITTEN_MS = 1_790_000_000_000
"""Both times of the view: fixed, so that equal views are equal tags."""
RUNS_SHOWN = 20
WORKFLOW = "workflowType=machine_learning"
"""MLflow's pages begin with what is for agents and traces unless they are told."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "Held-out loss": ("heldout/loss", "heldout/text/ce", "heldout/image/mse"),
    "Training loss and its parts": (
        "train/loss",
        "train/text/ce",
        "train/image/mse",
        "train/text/rate_regret",
        "train/text/zero",
    ),
    "Gradient norm and learning rate": ("train/grad_norm", "train/lr"),
    "Speed": ("speed/tokens_per_s", "speed/step_s", "speed/data_wait", "speed/mfu", "goodput/share"),
}
"""Title of a section -> its charts, one a metric; MLflow titles a chart by its metric."""
DIFFERENCES = "What differs"
COLUMNS = {
    "attributes.`Created`": 130,
    "attributes.`Dataset`": 220,
    "metrics.`heldout/loss`": 95,
    "metrics.`train/loss`": 95,
    "params.`objective.kind`": 110,
    "params.`optimiser.lr`": 100,
    "tags.`oneflow.changed`": 360,
}
"""Columns of the table, and their widths in pixels."""


def view_tags() -> dict[str, str]:
    """The experiment's tags: the view, and that MLflow should show it as one of training runs."""
    packed = base64.b64encode(zlib.compress(json.dumps(_state()).encode(), 9)).decode()
    view = {"name": TITLE, "createdAt": WRITTEN_MS, "updatedAt": WRITTEN_MS, "state": f"deflate;{packed}"}
    return {TAG: json.dumps(view), "mlflow.experimentKind": "custom_model_development"}


def view_path(experiment_id: str) -> str:
    """The part of the address, after the server's, that opens the charts."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART&{WORKFLOW}"


def _state() -> dict[str, Any]:
    sections = [*SECTIONS, DIFFERENCES]
    charts = [
        _line(f"{KEY}-{section}-{number}", f"{KEY}-{section}", metric)
        for section, metrics in enumerate(SECTIONS.values())
        for number, metric in enumerate(metrics)
    ]
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        # Otherwise MLflow sorts sections by name, and ours would stand among those that it makes up.
        "isAccordionReordered": True,
        "compareRunSections": [_section(f"{KEY}-{i}", name) for i, name in enumerate(sections)],
        "compareRunCharts": [*charts, _differences(f"{KEY}-{len(SECTIONS)}")],
    }


def _section(uuid: str, name: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _card(uuid: str, section: str, kind: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": section,
        "runsCountToCompare": RUNS_SHOWN,
        "deleted": False,
        "isGenerated": False,
    }


def _line(uuid: str, section: str, metric: str) -> dict[str, Any]:
    return _card(uuid, section, "LINE") | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "range": {},
    }


def _differences(section: str) -> dict[str, Any]:
    return _card(f"{section}-0", section, "DIFFERENCE") | {
        "chartName": "Parameters and tags that differ",
        "compareGroups": ["Parameters", "Tags"],
        "showChangeFromBaseline": False,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }
