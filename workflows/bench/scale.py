"""Opening corpora of a thousand to a million shards: seconds, memory, places of all lanes, size of the state.

Each size is measured in a process of its own, which has imported everything and opened a small corpus before; `cpu_s`
is CPU of opening and planning together. The exponents say how a figure grows with the number of shards between the two
largest: 0 is flat, 1 is linear. `plan` is what docs/scale.md is computed from.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from oneflow_core.data.lanes import LaneOrder
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.packer import LanePosition
from oneflow_core.data.state import STATE_SCHEMA, state_of
from workflows.bench.child import Child
from workflows.bench.plan import plan
from workflows.bench.result import Result
from workflows.bench.synthetic import write_manifest

SHARDS = (1_000, 10_000, 100_000, 1_000_000)
LANES, WINDOW = 64, 8192
FIGURES = ("open_s", "cpu_s", "plan_s", "locate_us", "mib", "state_bytes")


def run(runs: int) -> Result:
    """Ours is seconds to open the largest manifest and to find all lanes' places, the peer's those of the smallest."""
    return measure(runs, SHARDS)


def measure(runs: int, shards: Sequence[int]) -> Result:
    """A million shards of 1,000 samples are a billion samples."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in shards}
    with tempfile.TemporaryDirectory(prefix="oneflow-bench-") as made:
        for count in shards:
            write_manifest(Path(made) / f"{count}", "scale", count)
        for _ in range(runs):
            for count in shards:
                arguments = {"warm": f"{made}/{min(shards)}", "url": f"{made}/{count}"}
                with Child("workflows.bench.scale:opened", arguments) as child:
                    found[count].append(child.ask())
    sizes = {count: {f: median(run[f] for run in held) for f in FIGURES} for count, held in found.items()}
    totals = {count: [run["open_s"] + run["plan_s"] for run in held] for count, held in found.items()}
    extra = {
        "shards": {f"{count}": figures for count, figures in sizes.items()},
        "exponents": _exponents(sizes),
        "samples": max(shards) * 1000,
        "plan": plan(),
    }
    packages = ("numpy", "pyarrow")
    return Result("scale", "s to open and plan", totals[max(shards)], totals[min(shards)], packages, extra)


def opened(warm: str, url: str) -> Callable[[], dict[str, float]]:
    """Answers with the figures of one corpus, once."""
    _places(_order(Manifest.load(warm)))

    def answer() -> dict[str, float]:
        before = _resident()
        begun, used = time.perf_counter(), time.process_time()
        manifest = Manifest.load(url)
        loaded = time.perf_counter()
        order = _order(manifest)
        positions = _places(order)
        planned, used = time.perf_counter(), time.process_time() - used
        for lane in range(LANES):
            order.locate(lane, order.size(lane) // 2 + lane)
        located = time.perf_counter()
        identity = {
            "schema": STATE_SCHEMA,
            "corpora": {"scale": manifest.version},
            "lane_count": LANES,
            "seed": 0,
        }
        state = {**identity, "step": 10**6, **state_of(positions, ["scale"], 0, 1)}
        return {
            "open_s": loaded - begun,
            "plan_s": planned - loaded,
            "cpu_s": used,
            "locate_us": (located - planned) / LANES * 1e6,
            "mib": (_resident() - before) / 2**20,
            "state_bytes": len(json.dumps(state)),
        }

    return answer


def _order(manifest: Manifest) -> LaneOrder:
    return LaneOrder(manifest.shards.column("samples"), lanes=LANES, seed="0/scale", window=WINDOW)


def _places(order: LaneOrder) -> dict[int, LanePosition]:
    """Positions at half an epoch; the first sample of each is found, in the middle of a window."""
    positions = {}
    for lane in range(LANES):
        consumed = order.size(lane) // 2 + lane
        order.locate(lane, consumed)
        positions[lane] = LanePosition({"scale": consumed}, tuple(range(1, 9)))
    return positions


def _resident() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _exponents(sizes: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Of each figure between the two largest corpora."""
    small, large = sorted(sizes)[-2:]
    growth = math.log(large / small)
    return {f: math.log(max(sizes[large][f], 1e-9) / max(sizes[small][f], 1e-9)) / growth for f in FIGURES}
