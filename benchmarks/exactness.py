"""Gradient error and cosine of REAL under every layout: realrl's routes beside the loss of each micro-batch on its own.

    python benchmarks/exactness.py [--groups 12] [--group-size 8] [--threads 1]

A tiny Qwen2 made on the spot in float32, its weights moved away from those that sampled, so that scores are not 0; ragged
lengths, groups of all kinds. The reference is plain autograd in float64, one unpadded row at a time, with the loss written
out here (Eq. 6–8). `torn` is what gradient accumulation does with a loss that is a mean over the rollouts at hand: the mean
over micro-batches of REAL's loss on the rows of each, in the order of sampling or shuffled as trainers shuffle them. A row of
`results` holds the relative error |g − g*| / |g*|, the cosine, and how many micro-batches there were. Prints JSON.
"""

import argparse
import json
import random
from collections.abc import Iterable

import torch
from machine import versions
from plain import gradient_of, row_logprobs
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from realrl.models.logprobs import response_logprobs
from realrl.objectives import LossInputs, build_objective
from realrl.training.batching import select_rows
from realrl.training.gradient import GradientSettings, MiniBatchGradient
from realrl.types import Batch, Problem, Prompt

TAU, TEMPERATURE, VOCABULARY = 0.5, 0.6, 211


def make_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=256,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def move(model: Qwen2ForCausalLM, share: float) -> None:
    """Add noise of `share` of each parameter's own size."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(share * parameter.abs().mean() * torch.randn_like(parameter))


def make_batch(groups: int, group_size: int) -> Batch:
    """Responses of 3 to 40 tokens; every sixth group is all right or all wrong."""
    rng = random.Random(2)
    rows = groups * group_size
    lengths = torch.tensor([rng.randint(3, 40) for _ in range(rows)])
    rewards = []
    for group in range(groups):
        right = rng.choice([0, group_size]) if group % 6 == 5 else rng.randint(1, group_size - 1)
        labels = [1.0] * right + [0.0] * (group_size - right)
        rng.shuffle(labels)
        rewards += labels
    torch.manual_seed(3)
    loss_mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    rewards_N = torch.tensor(rewards)
    return Batch(
        prompts=[
            Prompt(Problem(str(group), "", ""), "", tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(4, 20))))
            for group in range(groups)
        ],
        response_ids=torch.randint(0, VOCABULARY, loss_mask.shape),
        loss_mask=loss_mask,
        group_ids=torch.arange(groups).repeat_interleave(group_size),
        rewards=rewards_N,
        levels=1 + rewards_N.long(),
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )


def real_loss(scores: Tensor, rewards: Tensor, group_ids: Tensor) -> Tensor:
    """REAL (Eq. 6–8), groups that are all right or all wrong without a loss but counted."""
    losses = []
    for group in group_ids.unique():
        own = group_ids == group
        right, wrong = scores[own & (rewards == 1)], scores[own & (rewards == 0)]
        if len(right) and len(wrong):
            losses.append(torch.log1p((-right / TAU).exp().sum()) + torch.log1p((wrong / TAU).exp().sum()))
    return sum(losses, scores.sum() * 0) / len(group_ids.unique())


def reference_gradient(model: Qwen2ForCausalLM, batch: Batch, old: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient in float64 and the scores, from `model` in float64."""
    model.zero_grad()
    scores = torch.stack([(row_logprobs(model, batch, row, TEMPERATURE) - old[row]).mean() for row in range(len(batch))])
    real_loss(scores, batch.rewards.double(), batch.group_ids).backward()
    return gradient_of(model), scores.detach()


def ours(model, batch: Batch, old_NT: Tensor, budget: int, route: str, shuffle: bool) -> tuple[Tensor, int]:
    generator = torch.Generator().manual_seed(4) if shuffle else None
    settings = GradientSettings(temperature=TEMPERATURE, budget=budget, route=route, shuffle=generator)
    step = MiniBatchGradient(model, build_objective({"type": "real", "tau": TAU}), settings)
    model.zero_grad()
    step.backward(batch, old_NT, None)
    return gradient_of(model), step.take_passes()[1]


def torn(model, batch: Batch, old_NT: Tensor, parts: Iterable[Tensor]) -> tuple[Tensor, int]:
    """The mean over micro-batches of REAL's loss on each one's own rows."""
    objective = build_objective({"type": "real", "tau": TAU})
    model.zero_grad()
    parts = list(parts)
    for rows in parts:
        part = select_rows(batch, rows)
        policy = response_logprobs(model, part, temperature=TEMPERATURE).logprobs
        old = old_NT[rows, : policy.shape[1]]
        loss = objective.evaluate(LossInputs(policy, old, part.loss_mask, part.rewards, part.group_ids)).loss
        (loss / len(parts)).backward()
    return gradient_of(model), len(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = make_batch(arguments.groups, arguments.group_size)
    rows, length = batch.loss_mask.shape
    model = make_model().double()
    with torch.no_grad():
        old = [row_logprobs(model, batch, row, TEMPERATURE) for row in range(rows)]
    # Through float32 and back, so that every side has the very same weights.
    model.float()
    move(model, 0.3)
    exact, scores = reference_gradient(model.double(), batch, old)
    model.float()
    old_NT = torch.zeros(rows, length)
    for row, values in enumerate(old):
        old_NT[row, : len(values)] = values.float()

    order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
    everything = 1 << 30
    layouts = {
        "ours, direct, no limit": lambda: ours(model, batch, old_NT, everything, "direct", False),
        "ours, direct, a group each": lambda: ours(model, batch, old_NT, 1, "direct", False),
        "ours, two-pass, no limit": lambda: ours(model, batch, old_NT, everything, "two_pass", False),
        "ours, two-pass, 512 tokens": lambda: ours(model, batch, old_NT, 512, "two_pass", False),
        "ours, two-pass, a row each": lambda: ours(model, batch, old_NT, 1, "two_pass", False),
        "ours, auto, 2,048 tokens": lambda: ours(model, batch, old_NT, 2048, "auto", False),
        "ours, shuffled, 512 tokens": lambda: ours(model, batch, old_NT, 512, "auto", True),
        "ours, shuffled, a row each": lambda: ours(model, batch, old_NT, 1, "auto", True),
    }
    for size in (4, 8, 32):
        layouts[f"torn, in order, {size} rows"] = lambda size=size: torn(model, batch, old_NT, torch.arange(rows).split(size))
        layouts[f"torn, shuffled, {size} rows"] = lambda size=size: torn(model, batch, old_NT, order.split(size))
    results = {}
    for name, run in layouts.items():
        gradient, parts = run()
        results[name] = {
            "relative_error": float((gradient - exact).norm() / exact.norm()),
            "cosine": round(float(torch.cosine_similarity(gradient, exact, dim=0)), 6),
            "norm_ratio": round(float(gradient.norm() / exact.norm()), 4),
            "micro_batches": parts,
        }
    report = {
        **versions(["torch", "transformers"]),
        "groups": arguments.groups,
        "group_size": arguments.group_size,
        "scores": {"mean_abs": round(float(scores.abs().mean()), 4), "max_abs": round(float(scores.abs().max()), 4)},
        "worst_of_ours": max(row["relative_error"] for name, row in results.items() if name.startswith("ours")),
        "results": results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
