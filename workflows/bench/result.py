"""What a benchmark tells: every run of ours and of the peer, and where it ran."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Result:
    """Runs of ours and of a peer, taken in turn, so that what else the machine does falls on both."""

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float]
    packages: Sequence[str] = ()
    """Distributions whose versions matter."""
    extra: dict[str, float] = field(default_factory=dict)

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
        extra = {name: f"{value:.4g}" for name, value in self.extra.items()}
        return {"benchmark": self.name, **rows, "ratio": f"{self.ratio:.3f}", **extra}

    def to_json(self) -> dict[str, Any]:
        """For programs; `runs` has every single value."""
        return {
            "name": self.name,
            "ratio": self.ratio,
            "ours": median(self.ours),
            "peer": median(self.peer),
            "unit": self.unit,
            **self.extra,
            "runs": {"ours": list(self.ours), "peer": list(self.peer)},
            "machine": {
                "cpus": os.cpu_count(),
                "architecture": platform.machine(),
                "system": platform.platform(),
                "load": os.getloadavg()[0],
            },
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in self.packages},
        }
