"""Calibration curves as people and programs read them."""

import io
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from oneflow_core.metrics.calibration import curve, summary

AXES = {
    "pi": ("pi: predicted P(gap is empty)", "share of gaps that are empty"),
    "lambda": ("lambda: predicted tokens of a gap that misses some", "tokens that are missing"),
}


def calibration_json(sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """The summary, and for each head the weight, mean prediction and mean observation of its bins."""
    curves = {name: curve(held) for name, held in sums.items() if name in AXES}
    return {"summary": summary(dict(sums)), "curves": curves}


def calibration_png(sums: Mapping[str, Tensor], step: int) -> bytes:
    """Predicted against observed for each head, as a PNG; a point's area is its share of the gaps."""
    from matplotlib.figure import Figure

    curves = {name: curve(sums[name]) for name in AXES if name in sums}
    figure = Figure(figsize=(5 * len(curves), 4.5), layout="constrained")
    for axes, (name, points) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        whole = sum(point["weight"] for point in points)
        predicted, observed = ([point[key] for point in points] for key in ("predicted", "observed"))
        most = max([1.0, *predicted, *observed])
        axes.plot([0, most], [0, most], color="grey", linewidth=1)
        axes.plot(predicted, observed, color="tab:blue", linewidth=1)
        axes.scatter(predicted, observed, [20 + 300 * point["weight"] / whole for point in points])
        axes.set(xlabel=AXES[name][0], ylabel=AXES[name][1])
    figure.suptitle(f"Calibration on held-out documents, step {step}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
