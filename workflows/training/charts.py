"""The preset of charts that MLflow's page of an experiment opens with: a shared view, kept as a tag of the experiment.

MLflow 3 keeps a view as the tag `mlflow.sharedViewState.<key>`: JSON with a name, two times and the page's state,
deflated and in base64. It is listed under "Shared views", and a link with `viewStateShareKey=<key>` opens it.
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

SECTIONS: dict[str, dict[str, list[str]]] = {
    "Held-out loss": {
        "Held-out loss": ["heldout/loss"],
        "Held-out text: cross-entropy": ["heldout/text/ce"],
        "Held-out text: rate": ["heldout/text/rate"],
        "Held-out image: squared error": ["heldout/image/mse"],
    },
    "Training loss and its parts": {
        "Loss": ["train/loss"],
        "Text: cross-entropy": ["train/text/ce"],
        "Text: rate, above its least": ["train/text/rate_regret"],
        "Text: complete or not": ["train/text/zero"],
        "Image: squared error": ["train/image/mse"],
    },
    "Gradient and learning rate": {
        "Gradient norm": ["train/grad_norm"],
        "Learning rate": ["train/lr"],
    },
    "Speed": {
        "Tokens per second": ["speed/tokens_per_s"],
        "Seconds of a step": ["speed/step_s"],
        "Share of time waiting for data": ["speed/data_wait"],
    },
}
"""Section -> title of a chart -> its metrics."""
DIFFERENCES = "What differs"
COLUMNS = (
    "attributes.`Created`",
    "attributes.`Duration`",
    "attributes.`Dataset`",
    "metrics.`heldout/loss`",
    "metrics.`train/loss`",
    "metrics.`speed/tokens_per_s`",
    "params.`objective.kind`",
    "params.`optimiser.lr`",
    "tags.`oneflow.changed`",
    "tags.`oneflow.attempt`",
)


def view_tags() -> dict[str, str]:
    """The experiment's tag that holds the view."""
    packed = base64.b64encode(zlib.compress(json.dumps(_state()).encode(), 9)).decode()
    view = {"name": TITLE, "createdAt": WRITTEN_MS, "updatedAt": WRITTEN_MS, "state": f"deflate;{packed}"}
    return {TAG: json.dumps(view)}


def view_url(server: str, experiment_id: str) -> str:
    """The address that opens the charts."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"


def _state() -> dict[str, Any]:
    sections = [*SECTIONS, DIFFERENCES]
    charts = [
        _line(f"{KEY}-{s}-{c}", f"{KEY}-{s}", title, metrics)
        for s, titled in enumerate(SECTIONS.values())
        for c, (title, metrics) in enumerate(titled.items())
    ]
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
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


def _line(uuid: str, section: str, title: str, metrics: list[str]) -> dict[str, Any]:
    return _card(uuid, section, "LINE") | {
        "displayName": title,
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
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
