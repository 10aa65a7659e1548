"""The machine: its device, and how fast it multiplies in float32 and in bfloat16.

Processors differ by orders of magnitude in bfloat16: with units for it they multiply three to four times as fast as in float32,
without them up to sixty times as slowly, and some raise an error in the backward pass. So it is measured, not looked up.
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

# Tokens of the probe, and of the first look at a precision that may be very slow.
_TOKENS = {"cpu": 256, "other": 4096}
_FIRST_TOKENS = 16
# A precision that takes this many times as long as float32 in the first look is not measured further.
_HOPELESS = 3.0
# Sides of the probe's weight at most: rates change little beyond, and the probe stays short.
_MOST_COLUMNS = {"cpu": 1024, "other": 8192}
# bfloat16 loses digits, so it has to be faster by more than a measurement is off.
_WORTHWHILE = 1.25
# Runs of a measurement: more of short ones, which other jobs on the machine disturb most.
_LEAST_RUNS, _MOST_RUNS, _ENOUGH_S = 3, 12, 0.03


@dataclass(frozen=True, slots=True)
class Speed:
    """FLOP/s of one linear layer: its product in the forward pass, and the two products of its backward pass."""

    forward: float
    backward: float

    @property
    def training(self) -> float:
        """FLOP/s of a forward and a backward pass together, where the backward pass has twice the operations."""
        return 3 / (1 / self.forward + 2 / self.backward)

    def times(self, factor: float) -> Speed:
        """Both speeds times `factor`."""
        return Speed(self.forward * factor, self.backward * factor)


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured speeds of a device. `bfloat16` is None where it raises an error; `fault` is then the error's first line."""

    device: str
    threads: int
    float32: Speed
    bfloat16: Speed | None
    fault: str = ""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Rates:
        """The inverse of `dataclasses.asdict`."""
        speeds = {name: record[name] and Speed(**record[name]) for name in ("float32", "bfloat16")}
        return cls(**{**record, **speeds})

    def of(self, dtype: str) -> Speed:
        """The speed in "float32" or "bfloat16"; where bfloat16 raises an error, float32's."""
        return self.bfloat16 or self.float32 if dtype == "bfloat16" else self.float32

    @property
    def samples_in_bfloat16(self) -> bool:
        """Whether bfloat16 is worth its lost digits in a forward pass."""
        return self.bfloat16 is not None and self.bfloat16.forward > _WORTHWHILE * self.float32.forward

    @property
    def trains_in_bfloat16(self) -> bool:
        """Whether bfloat16 is worth its lost digits in a forward and a backward pass."""
        return self.bfloat16 is not None and self.bfloat16.training > _WORTHWHILE * self.float32.training


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA where there is one (each rank of a machine its own), else Apple's MPS, else the CPU. Ranks without CUDA
    compute on the CPU, since gloo exchanges no tensors of MPS.

    Raises ConfigError where the named device is not there.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        found["mps"] = found["mps"] and "WORLD_SIZE" not in os.environ
        name = next(kind for kind in ("cuda", "mps", "cpu") if found[kind])
    if not found[name]:
        raise ConfigError(
            f"model.device = {name!r}, but torch sees no {name.upper()} device; use 'auto', or install a build of torch for it"
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def measure_rates(device: torch.device, hidden: int, wide: int) -> Rates:
    """Time a linear layer of `hidden` inputs and `wide` outputs on `device`, forward and backward, in both precisions.

    bfloat16 is measured as training uses it: float32 weights under autocast. On a CPU the precisions are compared on one
    thread, which other jobs on the machine disturb least, and the gain of all threads is measured in float32. Takes about a
    tenth of a second on a CPU.
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
    """The speed in bfloat16, or None and why not. Where a first look at few tokens shows it to be slow, that is its speed."""
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
    """A linear layer with random weights, to be timed."""

    def __init__(self, device: torch.device, hidden: int, wide: int) -> None:
        self.device = device
        self._draw = torch.Generator().manual_seed(0)
        self._weight = self._random(wide, hidden)

    def speed(self, dtype: torch.dtype, tokens: int) -> Speed:
        """The best of a few runs: other jobs on the machine only make them slower. The first run compiles kernels."""
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
    """Wait for what the device still has to do; a CPU has nothing left."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
