"""The machine that a figure was measured on: its name, its versions, its peak, and clocks that wait for the device.

torch is imported where it is used, so that a process without it can ask for versions.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

# FLOP/s of dense products in bfloat16, from the makers' data sheets. The first name that the device's own contains counts.
DENSE_BFLOAT16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def cpu_model() -> str:
    """The processor's name, "unknown" where the system does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version by package; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def known_peak(device_name: str) -> float | None:
    """FLOP/s in bfloat16 that the maker states, None for a device that is not in the table."""
    return next((peak for name, peak in DENSE_BFLOAT16.items() if name in device_name), None)


def measured_peak(device: Any, size: int) -> float:
    """FLOP/s of one large product, the median of 10: in bfloat16 on CUDA, else in float32."""
    import torch

    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    # Products of zeros run faster than those of data.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    took = sorted(seconds(lambda: left @ right, device, repeats=10))[5]
    return 2 * size**3 / took


def seconds(function: Callable[[], object], device: Any, repeats: int) -> list[float]:
    """Wall seconds of each call, after one that warms up."""
    import torch

    from realrl.system.hardware import synchronise

    times, where = [], torch.device(device)
    for _ in range(repeats + 1):
        synchronise(where)
        started = time.perf_counter()
        function()
        synchronise(where)
        times.append(time.perf_counter() - started)
    return times[1:]


def free(device: Any) -> None:
    """Give back what nothing holds any more."""
    import torch

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def forget_peak(device: Any) -> None:
    """The peak is counted from here on."""
    import torch

    free(device)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # ru_maxrss would start from the peak of the imports, or of the parent: Linux forgets this process's peak at a 5.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: Any) -> int:
    """The peak since it was last forgotten: of tensors on CUDA, else of the process (0 where the system does not tell)."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)


def unless_out_of_memory(function: Callable[[], Result], device: Any) -> Result | None:
    """What `function` gives, None where memory runs out, which is then given back."""
    from realrl.system.memory import out_of_memory

    try:
        return function()
    except Exception as error:  # noqa: BLE001  torch, Python and the sampler each have an exception of their own for it
        if not out_of_memory(error):
            raise
    # Outside the handler: the traceback holds activations.
    free(device)
    return None
