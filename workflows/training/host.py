"""What a worker holds and how busy its machine and GPU are, read in well under a millisecond."""

import logging
import math
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import psutil
import torch

log = logging.getLogger(__name__)

GIB = 2**30
READINGS: dict[str, Callable[[list[float]], float]] = {
    "memory/rss_gib": max,
    "memory/cuda_allocated_gib": max,
    "memory/cuda_reserved_gib": max,
    "memory/cuda_peak_gib": max,
    "host/cpu_cores": sum,
    "host/cpu_share": max,
    "host/memory_share": max,
    "gpu/utilisation": fmean,
    "gpu/power_w": sum,
    "gpu/temperature_c": max,
}
"""What is read, and how a run's number is made of its workers'."""


class Host:
    """This process, its machine, and its GPU where there is one; without pynvml (`oneflow[gpu]`) less is told of it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self._gpu = _nvml(device) if device.type == "cuda" else None
        self._seen = (time.monotonic(), self._cpu_s())
        psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        """Readings by name; those of time are means since the last call, the peak is of the time since then."""
        begun, cpu_s = self._seen
        self._seen = now, cpu_now = time.monotonic(), self._cpu_s()
        found = {
            "memory/rss_gib": self._process.memory_info().rss / GIB,
            "host/cpu_cores": (cpu_now - cpu_s) / max(now - begun, 1e-9),
            "host/cpu_share": psutil.cpu_percent() / 100,
            "host/memory_share": psutil.virtual_memory().percent / 100,
        }
        if self._device.type == "cuda":
            found |= self._cuda()
        return found

    def row(self, found: dict[str, float]) -> list[float]:
        """`read`'s answer in the order of READINGS, nan for what is not there."""
        return [found.get(name, math.nan) for name in READINGS]

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _cuda(self) -> dict[str, float]:
        found = {
            "memory/cuda_allocated_gib": torch.cuda.memory_allocated(self._device) / GIB,
            "memory/cuda_reserved_gib": torch.cuda.memory_reserved(self._device) / GIB,
            "memory/cuda_peak_gib": torch.cuda.max_memory_allocated(self._device) / GIB,
        }
        torch.cuda.reset_peak_memory_stats(self._device)
        if self._gpu is not None:
            nvml, handle = self._gpu
            found["gpu/utilisation"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            found["gpu/power_w"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            found["gpu/temperature_c"] = float(
                nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            )
        return found


def of_all(rows: list[list[float]]) -> dict[str, float]:
    """The run's readings from those of its workers; without those that no worker has."""
    found = {}
    for place, (name, joined) in enumerate(READINGS.items()):
        values = [row[place] for row in rows if not math.isnan(row[place])]
        if values:
            found[name] = float(joined(values))
    return found


def _nvml(device: torch.device) -> tuple[Any, Any] | None:
    """pynvml and the handle of the GPU by its own id, as CUDA may number a part of the machine's."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except Exception as error:
        log.info("no readings of the GPU: %s", error)
        return None
