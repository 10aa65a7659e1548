"""Started by test_vllm_sampler.py with torchrun: each rank samples its own prompts from an FSDP2 shard's weights."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from vllm_models import GROUP, PROMPTS, SEEDS, gap, make_model, run

from realrl.models.adder import character_tokenizer
from realrl.sampling import VLLMSampler

dist.init_process_group("gloo")
rank = dist.get_rank()
plain, model = make_model(tied=False), make_model(tied=False)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
sampler = VLLMSampler(model, character_tokenizer(), dtype=torch.float32, max_model_len=256, batch_rows=16)
# Three prompts on one rank and two on the other: the engines must not wait for each other.
rows = range(0, 3) if rank == 0 else range(3, 5)
prompts, seeds = [PROMPTS[row] for row in rows], SEEDS[rows[0] * GROUP : (rows[-1] + 1) * GROUP]
tokens = [rollout.token_ids for rollout in run(sampler, prompts=prompts, seeds=seeds)]
with torch.no_grad():
    for parameter in [*plain.parameters(), *model.parameters()]:
        parameter.mul_(1.2)
sampler.update_weights(model)
after = run(sampler, prompts=prompts, seeds=seeds)
result = {"tokens": tokens, "gap": gap(plain, after, prompts=prompts), "moved": [r.token_ids for r in after] != tokens}
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(result))
dist.barrier()
dist.destroy_process_group()
