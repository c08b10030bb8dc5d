"""The figures of docs/metrics.md, out of the metric histories of two runs: a healthy one and one that went wrong.

    python docs/images/metric_figures.py RUN BAD_RUN [--out DIR]

Runs are named as `oneflow runs show` takes them; MLflow is the one that the environment, or the running stack, names.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from mlflow import MlflowClient

from workflows.runs.curves import Histories, read
from workflows.runs.finding import MEND, find
from workflows.tracking_server import tracking_server

HEALTHY, BAD = "#1f5fd0", "#c2410c"
HUES = ("#1f5fd0", "#c2410c", "#17693a", "#8b2fc9", "#a16207", "#0e7490", "#be185d")
TIMES = ("0.1", "0.3", "0.5", "0.7", "0.9")


@dataclass(frozen=True, slots=True)
class Told:
    """What a run logged: histories by metric, and its calibration curves by step."""

    histories: Histories
    calibration: Mapping[int, Any]

    def names(self, beginning: str) -> list[str]:
        """Metrics that were logged and begin like that."""
        return sorted(name for name in self.histories.points if name.startswith(beginning))


def told(client: MlflowClient, said: str) -> Told:
    """All that is drawn of the run that `said` names."""
    run = find(client, said)
    curves: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for artifact in client.list_artifacts(run.info.run_id, "calibration"):
            local = Path(client.download_artifacts(run.info.run_id, artifact.path, directory))
            curves[int(local.stem.partition("-")[2])] = json.loads(local.read_text())["curves"]
    return Told(read(client, run.info.run_id, list(run.data.metrics)), curves)


def lines(axes: Axes, run: Told, names: Mapping[str, str], title: str, colours: Sequence[Any] = HUES) -> None:
    """A line a metric; `names` is from what the legend says to the metric."""
    for (label, name), colour in zip(names.items(), colours, strict=False):
        points = run.histories.points.get(name, ())
        marker = "o" if len(points) < 4 else None
        axes.plot(*_columns(points), color=colour, linewidth=1.3, label=label, marker=marker, markersize=3)
    _dress(axes, title)


def contrast(axes: Axes, healthy: Told, bad: Told, name: str) -> None:
    """One metric of both runs, for twice as many steps as the bad one took."""
    for label, run, colour in (("healthy", healthy, HEALTHY), ("gone wrong", bad, BAD)):
        points = run.histories.points.get(name, ())
        axes.plot(*_columns(points), color=colour, linewidth=1.3, label=label)
    _dress(axes, f"{name}, two runs")
    axes.set_xlim(0, 2 * bad.histories.last("train/loss", "step"))
    _log(axes)


def loss(panels: Sequence[Axes], healthy: Told, bad: Told) -> None:
    """Training and held-out loss, the parts of it, and the run that went wrong."""
    lines(panels[0], healthy, {"train": "train/loss", "held out": "heldout/loss"}, "loss, nats")
    parts = {n: f"train/{n}" for n in ("text/ce", "text/zero", "text/rate_regret", "image/mse")}
    lines(panels[1], healthy, parts, "parts of train/loss")
    _log(panels[1])
    contrast(panels[2], healthy, bad, "train/loss")


def what(panels: Sequence[Axes], healthy: Told, bad: Told) -> None:
    """Held-out loss by task, training loss by time."""
    tasks = {name.split("/")[1]: name for name in healthy.names("tasks/") if name.endswith("text_ce")}
    lines(panels[0], healthy, tasks, "tasks/<task>/text_ce")
    panels[0].set_ylim(bottom=0)
    for axes, name in zip(panels[1:], ("text_ce", "image_mse"), strict=True):
        lines(axes, healthy, {f"t{t}": f"bins/{name}/t{t}" for t in TIMES}, f"bins/{name}/t<t>", _ordered())
        _log(axes)


def calibration(panels: Sequence[Axes], healthy: Told, bad: Told) -> None:
    """Predicted against observed, early and at the end, and what is told of it over steps."""
    steps = sorted(healthy.calibration)
    for axes, head, title in zip(
        panels, ("pi", "lambda"), ("pi: gap is empty", "lambda: tokens missing"), strict=False
    ):
        for step, colour in zip((steps[0], steps[-1]), (HUES[4], HEALTHY), strict=True):
            held = healthy.calibration[step][head]
            spots = [[point[key] for point in held] for key in ("predicted", "observed")]
            weights = [point["weight"] for point in held]
            axes.plot(*spots, color=colour, linewidth=1.3, label=f"step {step}")
            axes.scatter(
                spots[0], spots[1], s=[8 + 150 * weight / sum(weights) for weight in weights], color=colour
            )
        most = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([0, most], [0, most], color="grey", linewidth=1, linestyle="--")
        _dress(axes, title, "predicted", "observed")
    ratios = {
        "calibration/count_ratio": "calibration/count_ratio",
        "samples/length_ratio": "samples/length_ratio",
    }
    lines(panels[2], healthy, ratios, "made or predicted / true")
    panels[2].axhline(1, color="grey", linewidth=1, linestyle="--")


def gradient(panels: Sequence[Axes], healthy: Told, bad: Told) -> None:
    """Norms of the gradient, whole and by part, of a part's weights, and the learning rate."""
    contrast(panels[0], healthy, bad, "train/grad_norm")
    parts = {name.partition("/")[2]: name for name in healthy.names("grad_norm/")}
    lines(panels[1], healthy, parts, "grad_norm/<part>, healthy")
    contrast(panels[2], healthy, bad, "weight_norm/trunk_low")
    contrast(panels[3], healthy, bad, "train/lr")
    _log(panels[1])
    panels[1].set_ylim(bottom=panels[1].get_ylim()[0] / 8)
    panels[1].legend(fontsize=8, ncols=2, loc="lower center", edgecolor="none")


def speed(panels: Sequence[Axes], healthy: Told, bad: Told) -> None:
    """Tokens a second, waiting for data, and what the wall time went to."""
    lines(panels[0], healthy, {"": "speed/tokens_per_s"}, "speed/tokens_per_s")
    panels[0].set_ylim(bottom=0)
    lines(panels[1], healthy, {"": "speed/data_wait"}, "speed/data_wait, share")
    panels[1].set_ylim(bottom=0)
    parts = ("steps", "data_wait", "evaluate", "checkpoint", "lost", "restart")
    spent = [dict(healthy.histories.points.get(f"goodput/{part}_s", ())) for part in parts]
    steps = sorted(spent[0])
    minutes = [[held.get(step, 0.0) / 60 for step in steps] for held in spent]
    panels[2].stackplot(steps, minutes, labels=[f"{part}_s" for part in parts], colors=HUES, alpha=0.8)
    _dress(panels[2], "goodput/<part>_s, minutes")


FIGURES: dict[str, tuple[int, Callable[[Sequence[Axes], Told, Told], None]]] = {
    "loss": (3, loss),
    "what": (3, what),
    "calibration": (3, calibration),
    "gradient": (4, gradient),
    "speed": (3, speed),
}
"""Name -> how many panels, and what draws them."""


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _ordered() -> list[Any]:
    """Colours of times: dark is noise, light is data."""
    from matplotlib import colormaps

    hues: Colormap = colormaps["viridis"]
    return [hues(i / len(TIMES)) for i in range(len(TIMES))]


def _log(axes: Axes) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _dress(axes: Axes, title: str, along: str = "step", up: str = "") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(along, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(color="#d9dee5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description="The figures of docs/metrics.md.")
    parser.add_argument("run", help="a healthy run")
    parser.add_argument("bad", help="one that went wrong")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    said = parser.parse_args()
    with tracking_server("the runs", MEND) as client:
        healthy, bad = told(client, said.run), told(client, said.bad)
    for name, (panels, draw) in FIGURES.items():
        figure = Figure(figsize=(3.6 * panels, 3.3), layout="constrained")
        draw(figure.subplots(1, panels), healthy, bad)
        figure.savefig(said.out / f"metrics-{name}.png", dpi=90)


if __name__ == "__main__":
    main()
