"""Choose the device, and measure how fast it multiplies in float32 and bfloat16.

In bfloat16, processors differ by orders of magnitude. With units for it they are three to four times as fast as in float32;
without, they can be sixty times slower, and some raise an error in the backward pass. So the speed is measured.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from realrl.errors import ConfigError

# Number of tokens in the measurement, and in a first short test of a precision that may be very slow.
_TOKENS = {"cpu": 256, "other": 4096}
_FIRST_TOKENS = 16
# If a precision is slower than float32 by this factor in the first test, it is not measured further.
_HOPELESS = 3.0
# Maximum size of the measured layer; larger layers have almost the same rates but take longer.
_MOST_COLUMNS = {"cpu": 1024, "other": 8192}
# bfloat16 loses digits, so it must be faster by more than the measurement error.
_WORTHWHILE = 1.25
# Number of runs of a measurement: more if runs are short, because other jobs disturb short runs most.
_LEAST_RUNS, _MOST_RUNS, _ENOUGH_S = 3, 12, 0.03


@dataclass(frozen=True, slots=True)
class Speed:
    """FLOP/s of one linear layer: of the product in its forward pass and of the two products in its backward pass."""

    forward: float
    backward: float

    @property
    def training(self) -> float:
        """FLOP/s of a forward and a backward pass together; the backward pass has twice the operations."""
        return 3 / (1 / self.forward + 2 / self.backward)

    def times(self, factor: float) -> Speed:
        """Both speeds multiplied by `factor`."""
        return Speed(self.forward * factor, self.backward * factor)


@dataclass(frozen=True, slots=True)
class Rates:
    """The measured speeds of a device. If bfloat16 fails, `bfloat16` is None and `fault` is the first line of the error."""

    device: str
    threads: int
    float32: Speed
    bfloat16: Speed | None
    fault: str = ""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Rates:
        """Create from the result of `dataclasses.asdict`."""
        speeds = {name: record[name] and Speed(**record[name]) for name in ("float32", "bfloat16")}
        return cls(**{**record, **speeds})

    def of(self, dtype: str) -> Speed:
        """The speed in "float32" or "bfloat16"; if bfloat16 raises an error, that of float32."""
        return self.bfloat16 or self.float32 if dtype == "bfloat16" else self.float32

    @property
    def samples_in_bfloat16(self) -> bool:
        """Whether a forward pass is faster in bfloat16 by enough to accept the lost digits."""
        return self.bfloat16 is not None and self.bfloat16.forward > _WORTHWHILE * self.float32.forward

    @property
    def trains_in_bfloat16(self) -> bool:
        """Whether a forward and a backward pass are faster in bfloat16 by enough to accept the lost digits."""
        return self.bfloat16 is not None and self.bfloat16.training > _WORTHWHILE * self.float32.training


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for `name`; "auto" is CUDA if available (one device per local rank), else Apple's MPS, else the CPU.

    Several ranks without CUDA use the CPU, since gloo cannot exchange MPS tensors. Raises ConfigError if torch does not find
    the device.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        found["mps"] = found["mps"] and "WORLD_SIZE" not in os.environ
        name = next(kind for kind in ("cuda", "mps", "cpu") if found[kind])
    if not found[name]:
        raise ConfigError(
            f"model.device = {name!r}, but torch finds no {name.upper()} device; use 'auto', or install a build of torch for it"
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def measure_rates(device: torch.device, hidden: int, wide: int) -> Rates:
    """Time a linear layer with `hidden` inputs and `wide` outputs on `device`, forward and backward, in both precisions.

    bfloat16 means float32 weights under autocast, as in training. On a CPU, one thread compares the precisions, because other
    jobs disturb it least; the gain from all threads is measured in float32. Takes about a tenth of a second on a CPU.
    """
    cpu = device.type == "cpu"
    threads = torch.get_num_threads()
    layer = _Layer(device, *(min(size, _MOST_COLUMNS["cpu" if cpu else "other"]) for size in (hidden, wide)))
    tokens = _TOKENS["cpu" if cpu else "other"]
    with _threads(1 if cpu else threads):
        float32 = layer.speed(torch.float32, tokens)
        bfloat16, fault = _bfloat16_speed(layer, tokens)
    gain = 1.0
    if cpu and threads > 1:
        gain = max(1.0, layer.speed(torch.float32, tokens).forward / float32.forward)
    return Rates(device.type, threads, float32.times(gain), bfloat16 and bfloat16.times(gain), fault)


def _bfloat16_speed(layer: _Layer, tokens: int) -> tuple[Speed | None, str]:
    """The speed in bfloat16, or None and the reason. If a first test with few tokens is slow, its result is the speed."""
    try:
        if layer.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return None, "the device has no bfloat16 units"
        first = layer.speed(torch.bfloat16, _FIRST_TOKENS)
        if _HOPELESS * first.training < layer.speed(torch.float32, _FIRST_TOKENS).training:
            return first, ""
        return layer.speed(torch.bfloat16, tokens), ""
    except RuntimeError as error:
        return None, str(error).partition("\n")[0]


class _Layer:
    """A linear layer with random weights for timing."""

    def __init__(self, device: torch.device, hidden: int, wide: int) -> None:
        self.device = device
        self._draw = torch.Generator().manual_seed(0)
        self._weight = self._random(wide, hidden)

    def speed(self, dtype: torch.dtype, tokens: int) -> Speed:
        """The best of a few runs, because other jobs only make a run slower, and the first run also compiles kernels."""
        wide, hidden = self._weight.shape
        states, slope = self._random(tokens, hidden), torch.ones(tokens, wide, device=self.device, dtype=dtype)
        forward = backward = float("inf")
        began = time.perf_counter()
        for run in range(_MOST_RUNS):
            if run >= _LEAST_RUNS and time.perf_counter() - began > _ENOUGH_S:
                break
            with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype != torch.float32):
                seconds, product = self._timed(lambda: torch.nn.functional.linear(states, self._weight))
            forward = min(forward, seconds)
            inputs = [states, self._weight]
            seconds, _ = self._timed(lambda product=product, inputs=inputs: torch.autograd.grad(product, inputs, slope))
            backward = min(backward, seconds)
        operations = 2 * tokens * hidden * wide
        return Speed(operations / forward, 2 * operations / backward)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._draw).to(self.device).requires_grad_()

    def _timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        synchronise(self.device)
        began = time.perf_counter()
        result = call()
        synchronise(self.device)
        return time.perf_counter() - began, result


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
