"""What a benchmark tells: every run of ours and of the peer, and where it ran."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Result:
    """Runs of ours and of a peer, taken in turn, so that what else the machine does falls on both."""

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float]
    packages: Sequence[str] = ()
    """Distributions whose versions matter."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys: numbers, words, or mappings of them."""
    other_runs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Runs of third sides, or of a second measure; their names say which."""

    @property
    def ratio(self) -> float:
        """Median of ours by median of the peer."""
        return median(self.ours) / median(self.peer)

    def summary(self) -> dict[str, str]:
        """For people."""
        rows = {
            name: f"{median(runs):.4g} {self.unit}"
            for name, runs in (("ours", self.ours), ("peer", self.peer))
        }
        return {"benchmark": self.name, **rows, "ratio": f"{self.ratio:.3f}", **_lines(self.extra)}

    def to_json(self) -> dict[str, Any]:
        """For programs; `runs` has every single value."""
        return {
            "name": self.name,
            "ratio": self.ratio,
            "ours": median(self.ours),
            "peer": median(self.peer),
            "unit": self.unit,
            **self.extra,
            "runs": {"ours": list(self.ours), "peer": list(self.peer)}
            | {name: list(runs) for name, runs in self.other_runs.items()},
            "machine": {
                "cpus": os.cpu_count(),
                "cpu": _cpu(),
                "architecture": platform.machine(),
                "system": platform.platform(),
                "load": os.getloadavg()[0],
            },
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in self.packages},
        }


def _lines(extra: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """One line for each value, and for each innermost mapping."""
    lines: dict[str, str] = {}
    for name, value in extra.items():
        if value == {}:
            continue
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            lines |= _lines(value, f"{above}{name} ")
        elif isinstance(value, Mapping):
            lines[above + name] = ", ".join(f"{k} {_short(v)}" for k, v in value.items())
        else:
            lines[above + name] = _short(value)
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    """The processor's own name, where the system tells it."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
