"""Tokens and time of forward and backward in each layout, for prompts, groups and common prefixes of several sizes.

    python benchmarks/prefix_tree.py [--threads 1] [--repeats 3] [--only NAME]

A random Qwen2 in float32 (hidden size 256, 4 layers). `shared` is the tree cut down to one level: each group's prompt once, and
nothing else. In `deep` the rollouts of a group begin alike, too. For each case: tokens that go through the layers, and time, as
shares of `padded`; the layouts take turns, and the fastest of the repeats counts. `off` is the larger relative error of two
gradients, of the whole batch and of groups cut into micro-batches, against one row at a time in float64. Prints JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from machine import cpu_model, versions
from made_up import make_batch, make_model
from plain import gradient_of, row_logprobs

from realrl.models import layouts
from realrl.models.logprobs import layout_of, longest_row, response_logprobs
from realrl.models.tree import PrefixTree, prefix_tree
from realrl.training.batching import plan_micro_batches, select_rows
from realrl.types import Batch

VOCABULARY = 512
# (groups, responses each, common prefix of all prompts, own prompt, response, common start of a group's responses)
CASES = {
    "short": (8, 8, 0, 64, 32, 0),
    "short, common 64": (8, 8, 64, 64, 32, 0),
    "long prompt": (2, 8, 0, 1024, 64, 0),
    "long prompt, 16 responses": (1, 16, 0, 1024, 64, 0),
    "common 512": (4, 8, 512, 64, 64, 0),
    "common 2048": (4, 4, 2048, 64, 64, 0),
    "long responses": (2, 4, 0, 128, 512, 0),
    "deep": (4, 8, 64, 128, 128, 64),
}


def batch_of(groups: int, size: int, common: int, own: int, response: int, alike: int) -> Batch:
    batch = make_batch(groups, size, response, VOCABULARY, prompt=own)
    start = tuple(torch.randint(1, VOCABULARY, (common,), generator=torch.Generator().manual_seed(2)).tolist())
    prompts = [replace(prompt, token_ids=start + prompt.token_ids) for prompt in batch.prompts]
    first = torch.arange(groups).repeat_interleave(size) * size
    ids = batch.response_ids.clone()
    ids[:, :alike] = ids[first, :alike]
    return replace(batch, prompts=prompts, response_ids=ids)


@contextmanager
def one_level(batch: Batch):
    """The layout "tree" shares prompts within their groups alone."""
    prompts = [len(batch.prompts[group].token_ids) for group in batch.group_ids.tolist()]

    def within_groups(sequences: list[np.ndarray]) -> PrefixTree:
        # A first token of its own keeps groups apart; a last token of its own in each prompt keeps responses apart.
        marked = [
            np.concatenate([sequence[:length] + VOCABULARY * (group + 1), sequence[length:] + VOCABULARY * (100 + row)])
            for row, (sequence, length, group) in enumerate(zip(sequences, prompts, batch.group_ids.tolist(), strict=True))
        ]
        tree = prefix_tree(marked)
        return replace(tree, ids_S=tree.ids_S % VOCABULARY)

    with mock.patch.object(layouts, "prefix_tree", within_groups):
        yield


def measured(model, batch: Batch, layout: str) -> tuple[float, int]:
    """Seconds of forward and backward, and the tokens that went through the layers."""
    seen = []
    hook = model.model.layers[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[:2].numel()))
    model.zero_grad()
    began = time.perf_counter()
    response_logprobs(
        model, batch, temperature=1.0, layout="padded" if layout == "padded" else "tree"
    ).logprobs.sum().backward()
    seconds = time.perf_counter() - began
    hook.remove()
    return seconds, sum(seen)


def reference(model, batch: Batch) -> torch.Tensor:
    model.double().zero_grad()
    for row in range(len(batch)):
        row_logprobs(model, batch, row, 1.0).sum().backward()
    found = gradient_of(model)
    model.float()
    return found


def error(model, batch: Batch, wanted: torch.Tensor, parts: list[torch.Tensor]) -> float:
    model.zero_grad()
    for rows in parts:
        response_logprobs(model, select_rows(batch, rows), temperature=1.0, layout="tree").logprobs.sum().backward()
    return float((gradient_of(model).double() - wanted).norm() / wanted.norm())


def case(model, name: str, repeats: int) -> dict:
    batch = batch_of(*CASES[name])
    layout_of(model, "tree", longest=longest_row(batch))
    layout_of(model, "padded", longest=longest_row(batch))
    ways: dict[str, Callable[[], tuple[float, int]]] = {
        "padded": lambda: measured(model, batch, "padded"),
        "shared": lambda: measured(model, batch, "shared"),
        "tree": lambda: measured(model, batch, "tree"),
    }
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, run in ways.items():
            with one_level(batch) if way == "shared" else mock.patch.object(layouts, "prefix_tree", prefix_tree):
                found[way].append(run())
    best = {way: min(runs[1:]) for way, runs in found.items()}
    rows = torch.arange(len(batch))
    torn = plan_micro_batches(batch, rows, sum(CASES[name][2:5]) + 3 * CASES[name][4], "tree", whole_groups=False).rows
    wanted = reference(model, batch)
    return {
        "case": name,
        "tokens": {way: round(tokens / best["padded"][1], 3) for way, (_, tokens) in best.items()},
        "time": {way: round(seconds / best["padded"][0], 3) for way, (seconds, _) in best.items()},
        "seconds": round(best["padded"][0], 3),
        "off": max(error(model, batch, wanted, parts) for parts in ([rows], torn)),
        "micro_batches": len(torn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = make_model(VOCABULARY).eval()
    results = []
    for name in arguments.only or CASES:
        results.append(case(model, name, arguments.repeats))
        print(json.dumps(results[-1]), flush=True)
    print(
        json.dumps(
            {
                "threads": arguments.threads,
                "cpu": cpu_model(),
                "versions": versions(("torch", "transformers")),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
