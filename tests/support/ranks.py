"""What each rank of tests/training/test_distributed.py runs: the three optimizer steps of test_exactness.

`cases` is JSON: name → [objective, train options]. Rank 0 writes each case's weights and losses to `out` (safetensors).
"""

import json

import torch
from safetensors.torch import save_file
from three_steps import three_steps

from realrl.training.distributed import join_world


def main(folder: str, out: str, cases: str) -> None:
    torch.set_num_threads(1)
    with join_world() as world:
        found = {}
        for name, (objective, train) in json.loads(cases).items():
            weights, updates = three_steps(folder, objective, world=world, **train)
            found[f"{name}/weights"] = weights
            found[f"{name}/losses"] = torch.tensor([update.report.loss for update in updates])
            found[f"{name}/norms"] = torch.tensor([update.grad_norm for update in updates])
            found[f"{name}/entropy"] = torch.cat([update.report.entropy_N for update in updates])
        if world.is_main:
            save_file(found, out)
