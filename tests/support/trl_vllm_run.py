"""Started by test_trl_vllm.py: trl_probe.py with vLLM's CPU build in the training process.

    python tests/support/trl_vllm_run.py MODEL OUT CASE

TRL puts new weights into the parameters of vLLM's model, which its CPU build packs and throws away; here it keeps them, and
multiplies by them as they are.
"""

import json
import os
import sys
from pathlib import Path

# The KV cache in GiB; no compilation; the hub is out of reach.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_CI_ENV": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

import torch
from trl_probe import run
from vllm.model_executor.layers import utils


def keep_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


utils.dispatch_cpu_unquantized_gemm = keep_weights

if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
