"""How much arithmetic a device can do: by its data sheet, and as a product of matrices reaches it."""

import time
from collections.abc import Callable

import torch

DATA_SHEET = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
}
"""Dense bf16 FLOP/s of devices by a part of their names."""
CPU_SIDE, GPU_SIDE = 512, 4096
"""Sides of the matrices that are multiplied where no data sheet tells: large enough, and over in a moment."""
TRIES = 5


def device_name(device: str | torch.device) -> str:
    """As CUDA tells it, or cpu."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"


def sheet_rate(name: str) -> float | None:
    """bf16 FLOP/s of the data sheet; None where the device is not known."""
    return next((rate for known, rate in DATA_SHEET.items() if known in name), None)


def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that utilisation is measured by: the data sheet's for bf16 on a device that is known, else measured.

    Measured is the best of a few products with as many threads as torch has now: some tens of milliseconds.
    """
    known = sheet_rate(device_name(device)) if dtype == torch.bfloat16 else None
    if known:
        return known
    side = GPU_SIDE if device.type == "cuda" else CPU_SIDE
    return max(product_rate(side, dtype, device, repeats=2) for _ in range(TRIES))


def product_rate(side: int, dtype: torch.dtype, device: str | torch.device, repeats: int = 10) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    timed(lambda: a @ b, device)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    return 2 * side**3 * repeats / timed(products, device)


def timed(act: Callable[[], object], device: str | torch.device) -> float:
    """Seconds until the device has done it."""
    gpu = torch.device(device).type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    act()
    if gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
