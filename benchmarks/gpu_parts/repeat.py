"""The same computation several times on the device: is it the same bit for bit, and which operation is not?"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from made_up import gradient_step, make_batch, make_model, make_sampler
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from gpu_parts.part import Part
from realrl.sampling import SamplingParams

TIMES = 5
LAYERS_OF_SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def run(part: Part) -> None:
    """A gradient of a small model, its sampling, and single operations whose sums may run in another order each time."""
    # cuBLAS adds up in one order only with a workspace of its own; read when it starts.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    sizes = {} if part.tiny else LAYERS_OF_SMOLLM2
    vocabulary, length, groups, prompt = (300, 8, 2, 8) if part.tiny else (49152, 32, 16, 83)
    model = make_model(vocabulary, part.device, **sizes)
    model.train()
    batch = make_batch(groups, 8, length, vocabulary, part.device, prompt=prompt)
    autocast = torch.bfloat16 if part.device == "cuda" else None
    for name, settings in {
        "tree": {"layout": "tree"},
        "padded": {"layout": "padded"},
        "tree, autocast": {"layout": "tree", "autocast": autocast},
    }.items():
        if part.time_for(f"gradient, {name}"):
            part.add(f"gradient, {name}", first_difference(model, batch, settings))
    if part.time_for("sampling"):
        part.add("sampling", sampling_difference(model, batch, length))
    if part.time_for("operations"):
        operations = single_operations(part.device, 64 if part.tiny else 4096)
        part.add("operations_that_differ", [name for name, operation in operations.items() if not repeats(operation)])
    if part.time_for("deterministic algorithms"):
        part.add("deterministic_algorithms", deterministic(model, batch))
    part.summary = summary(part.results)


def summary(results: dict[str, Any]) -> str:
    """What differs, operation by operation, and what torch's deterministic algorithms change."""
    found = [f"{name}: {text}" for name, text in results.items() if name.startswith(("gradient", "sampling")) and text]
    said = ["; ".join(found) or f"{TIMES} passes are equal bit for bit"]
    if operations := results.get("operations_that_differ"):
        said.append(f"single operations that differ: {', '.join(operations)}")
    if found and (forced := results.get("deterministic_algorithms")):
        said.append(f"with torch's deterministic algorithms {forced['first_difference'] or 'they are equal'}")
        said += [f"torch: {warning}" for warning in forced["torch_warns"]]
    return "; ".join(said)


def first_difference(model: Any, batch: Any, settings: dict[str, Any]) -> str:
    """Where passes over one batch part first, in the order of computation; empty where they do not."""
    first = trace(model, batch, settings)
    for _ in range(TIMES - 1):
        other = trace(model, batch, settings)
        if unequal := [name for (name, a), (_, b) in zip(first, other, strict=True) if not torch.equal(a, b)]:
            return f"{unequal[0]}, the first of {len(unequal)} of {len(first)}"
    return ""


def trace(model: Any, batch: Any, settings: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Of one forward and backward: every module's output, then the gradients that reach them, then those of the weights."""
    outputs: list[tuple[str, Tensor]] = []
    gradients: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                outputs.append((f"output of {name}", tensor.detach().clone()))
                tensor.register_hook(lambda gradient: gradients.append((f"gradient at {name}", gradient.clone())))

        return keep

    hooks = [module.register_forward_hook(hook(name)) for name, module in model.base_model.named_modules() if name]
    try:
        model.zero_grad(set_to_none=True)
        report = gradient_step(model, budget=1 << 30, **settings).backward(batch, None, None)
    finally:
        for one in hooks:
            one.remove()
    weights = [(f"gradient of {name}", p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None]
    return [*outputs, ("log-probabilities", report.logprobs_NT), *gradients, *weights]


def sampling_difference(model: Any, batch: Any, length: int) -> str:
    """Whether sampling with the same seeds gives other tokens or other log-probabilities; empty where it does not."""
    sampler, rows = make_sampler(model), len(batch)
    prompts = [prompt.token_ids for prompt in batch.prompts]
    params = SamplingParams(temperature=1.0, max_new_tokens=length)

    def draw() -> list[tuple[Any, Any]]:
        rollouts = sampler.sample(prompts, group_size=rows // len(prompts), params=params, seeds=list(range(rows)))
        return [(rollout.token_ids, rollout.logprobs_sampler) for rollout in rollouts]

    first = draw()
    for _ in range(TIMES - 1):
        other = draw()
        if [tokens for tokens, _ in first] != [tokens for tokens, _ in other]:
            return "tokens"
        if first != other:
            return "log-probabilities"
    return ""


def repeats(operation: Callable[[], Tensor]) -> bool:
    first = operation()
    return all(torch.equal(first, operation()) for _ in range(TIMES - 1))


def single_operations(device: str, size: int) -> dict[str, Callable[[], Tensor]]:
    """Operations of a training step, on random data of `size` rows."""
    generator = torch.Generator().manual_seed(2)

    def data(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    values, index = data(size, 64), torch.randint(0, 16, (size,), generator=generator).to(device)
    table = data(16, 64).requires_grad_()
    tokens = size // 8
    states = data(3, 2, 4, tokens, 64)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()

    def attention(dtype: torch.dtype, masked: bool) -> Tensor:
        leaf = states.to(dtype).requires_grad_()
        bias = torch.zeros(tokens, tokens, dtype=dtype, device=device).masked_fill_(~causal, -torch.inf) if masked else None
        out = scaled_dot_product_attention(*leaf, attn_mask=bias, is_causal=not masked)
        return torch.autograd.grad(out.float().square().sum(), leaf)[0]

    # The kernels of other types are others.
    types = (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,)
    return {
        "embedding, backward": lambda: torch.autograd.grad(embedding(index, table).square().sum(), table)[0],
        "index_select, backward": lambda: torch.autograd.grad(table.index_select(0, index).square().sum(), table)[0],
        "indexing, backward": lambda: torch.autograd.grad(table[index].square().sum(), table)[0],
        "index_add": lambda: torch.zeros(16, 64, device=device).index_add(0, index, values),
        "scatter_add": lambda: torch.zeros(16, 64, device=device).scatter_add(0, index[:, None].expand(-1, 64), values),
        "cumsum": lambda: values.cumsum(0),
        "sum": lambda: values.sum(0),
        "matrix product": lambda: values.T @ values,
        **{
            f"attention {'with' if masked else 'without'} a mask, backward, {dtype}": partial(attention, dtype, masked)
            for dtype in types
            for masked in (False, True)
        },
    }


def deterministic(model: Any, batch: Any) -> dict[str, Any]:
    """Whether torch's deterministic algorithms make passes equal, and which operations torch says have none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            found = first_difference(model, batch, {"layout": "tree"})
        finally:
            torch.use_deterministic_algorithms(False)
    # "cumsum_cuda_kernel does not have a deterministic implementation, but you set …"
    told = sorted({re.split("[.,]", text)[0] for text in (str(one.message) for one in caught) if "determinis" in text})
    return {"first_difference": found, "torch_warns": told}
