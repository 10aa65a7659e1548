"""Where the constants of `realrl.training.estimate` come from: counted work beside the CPU seconds that it takes, one thread.

CPU seconds, because other jobs on the machine disturb them less than the clock on the wall. Each case is measured beside a
plain product. Prints JSON: a line for each case with its counts, its seconds, and the estimate's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from realrl.models.logprobs import layout_of, response_logprobs
from realrl.models.shape import Shape
from realrl.sampling import SamplingParams
from realrl.sampling.hf import HFSampler
from realrl.system.hardware import Rates, Speed
from realrl.system.memory import keep_freed_memory
from realrl.training.estimate import Lengths, Work, backward_work, forward_work, sampling_work, seconds
from realrl.types import Batch, Problem, Prompt

# hidden, intermediate, layers, heads, key heads, vocabulary; groups, rollouts of each, tokens of a prompt and of a response.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "quick start": ((576, 1536, 30, 9, 3, 49152), (5, 8, 83, 10)),
    "tiny": ((128, 256, 4, 4, 4, 30), (16, 8, 8, 27)),
    "gsm8k": ((576, 1536, 30, 9, 3, 49152), (4, 8, 170, 90)),
    "wide": ((1024, 4096, 4, 16, 4, 8192), (4, 8, 100, 60)),
}


class _Tokenizer:
    """What the sampler asks of one; no response ends early."""

    eos_token_id = 10**6

    def decode(self, ids: Any, **_: Any) -> str:
        return ""


def build(sizes: tuple[int, ...]) -> PreTrainedModel:
    hidden, intermediate, layers, heads, key_heads, vocabulary = sizes
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        eos_token_id=10**6,
    )
    return LlamaForCausalLM(config).train()


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """The least of a few runs, after one that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


def plain_speed(dtype: torch.dtype, repeats: int) -> Speed:
    """FLOP/s of one linear layer, as `realrl.system.hardware` measures it, by CPU seconds."""
    states, weight = (torch.randn(256, 576, requires_grad=True), torch.randn(1024, 576, requires_grad=True))
    slope = torch.ones(256, 1024, dtype=dtype)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            return torch.nn.functional.linear(states, weight)

    def both() -> None:
        torch.autograd.grad(forward(), [states, weight], slope)

    operations = 2 * 256 * 576 * 1024
    ahead = cpu_seconds(lambda: [forward() for _ in range(10)], repeats) / 10
    whole = cpu_seconds(lambda: [both() for _ in range(10)], repeats) / 10
    return Speed(operations / ahead, 2 * operations / max(whole - ahead, 1e-9))


def measure(name: str, dtype: str, repeats: int) -> None:
    """Forward, forward and backward, and sampling of a case."""
    sizes, (groups, size, prompt, response) = CASES[name]
    model, lengths, rows = build(sizes), Lengths(prompt, response), groups * size
    shape = Shape.of(model)
    layout_of(model)
    # Prompts differ from the first token on: nothing is common to them.
    prompts = [Prompt(Problem("", "", ""), "", tuple(range(group, group + prompt))) for group in range(groups)]
    prompts = [replace(p, token_ids=tuple(i % sizes[-1] for i in p.token_ids)) for p in prompts]
    batch = Batch(
        prompts=prompts,
        response_ids=torch.full((rows, response), 5),
        loss_mask=torch.ones(rows, response, dtype=torch.bool),
        group_ids=torch.arange(rows) // size,
        rewards=torch.ones(rows),
        levels=torch.ones(rows),
        logprobs_sampler=torch.zeros(rows, response),
    )
    low = dtype == "bfloat16"
    sampler = HFSampler(model, _Tokenizer(), dtype=torch.bfloat16 if low else None)  # pyright: ignore[reportArgumentType]
    params = SamplingParams(temperature=1.0, max_new_tokens=response)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return response_logprobs(model, batch, temperature=1.0).logprobs.sum()

    def both() -> None:
        forward().backward()
        model.zero_grad()

    def sample() -> None:
        sampler.sample([p.token_ids for p in prompts], group_size=size, params=params, seeds=list(range(rows)))

    cut = {"shared": True, "budget": 10**6}
    ahead = forward_work(shape, groups, size, lengths, **cut)
    behind = backward_work(shape, groups, size, lengths, **cut, checkpointing=False)
    width = 2 if low else 4
    sampled = sampling_work(shape, groups, size, lengths, rows_at_once=256, longest=response, width=width)
    for kind, call, work in (("forward", forward, ahead), ("both", both, ahead + behind), ("sampling", sample, sampled)):
        speed = plain_speed(torch.bfloat16 if low else torch.float32, repeats)
        report(name, dtype, kind, work, speed, cpu_seconds(call, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    for name in arguments.cases.split(","):
        for dtype in ("float32", "bfloat16"):
            measure(name, dtype, arguments.repeats)


def report(name: str, dtype: str, kind: str, work: Work, speed: Speed, took: float) -> None:
    rates = Rates("cpu", 1, speed, speed)
    print(
        json.dumps(
            {
                "case": name,
                "dtype": dtype,
                "kind": kind,
                "seconds": round(took, 4),
                "estimate": round(seconds(work, rates, dtype), 4),
                "share_of_plain": round((work.forward / speed.forward + work.backward / speed.backward) / took, 2),
                "gflops": [round(speed.forward / 1e9), round(speed.backward / 1e9)],
                **{key: float(f"{value:.4g}") for key, value in asdict(work).items()},
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
