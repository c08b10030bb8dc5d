"""GPUs by their data sheets."""

from dataclasses import dataclass

from workflows.errors import UsageError

GIB = 2**30
SHARE_ASSUMED = 0.40
"""Of the data sheet's rate that training is assumed to reach: a round number, not a measurement. `oneflow bench plan
--device cuda` measures it."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. Rates are dense products, FLOP/s."""

    name: str
    bf16: float
    fp32: float
    """Without tensor cores, as torch computes float32 by default."""
    memory: int
    """Bytes."""

    def rate(self, precision: str) -> float:
        """FLOP/s in the precision of the passes."""
        return self.bf16 if precision == "bf16" else self.fp32


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 989e12, 67e12, 80 * GIB),
        Gpu("H200", 989e12, 67e12, 141 * GIB),
        Gpu("A100", 312e12, 19.5e12, 80 * GIB),
        Gpu("L40S", 362e12, 91.6e12, 48 * GIB),
        Gpu("B200", 2250e12, 80e12, 180 * GIB),
    )
}
"""NVIDIA's data sheets; SXM parts with 80 GB where there are several."""


def gpu_named(name: str) -> Gpu:
    """UsageError for one that is not in the table."""
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise UsageError(f"--gpu {name}", "its data sheet is not known", f"known: {', '.join(GPUS)}")
