"""The device of these tests: CUDA where there is one, or what REALRL_DEVICE names (cpu tries the same code without one)."""

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("REALRL_DEVICE") or "cuda")
marks = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(),
        reason="needs a CUDA device; REALRL_DEVICE=cpu runs it on the CPU",
    ),
]
