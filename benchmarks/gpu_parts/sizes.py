"""An architecture of 0.5B or 1.5B parameters with random weights: training, sampling, memory, the longest context."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from machine import forget_peak, known_peak, measured_peak, peak_bytes, seconds, unless_out_of_memory
from made_up import gradient_step, make_batch, make_model, make_sampler, sample

from gpu_parts.part import Part
from realrl.config import OptimSection
from realrl.models.modes import train_without_noise
from realrl.training.optim import state_bytes

ROWS, REPEATS = 8, 2


@dataclass(frozen=True)
class Sizes:
    """Response lengths, the prompt's, tokens of a micro-batch, what sampling decodes at each length, the longest one tried."""

    lengths: tuple[int, ...]
    prompt: int
    micro_batch_tokens: int
    decoded: int
    sampled_rows: int
    longest: int
    vocabulary: int


REAL = Sizes((1024, 4096, 8192), 256, 8448, 64, 64, 65536, 151936)
TINY = Sizes((16, 32), 8, 48, 4, 4, 128, 300)
# Qwen2.5's own shapes.
SHAPES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
# What is trained with: layout, gradient checkpointing.
WAYS = (("tree", False), ("tree", True), ("padded", False))


def build(part: Part, size: str) -> Any:
    """The model in the type that it would be trained in: bfloat16 on CUDA."""
    low = torch.bfloat16 if part.device == "cuda" else torch.float32
    shape = SHAPES["tiny" if part.tiny else size]
    model = make_model(
        (TINY if part.tiny else REAL).vocabulary,
        part.device,
        low,
        **shape,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=REAL.longest + REAL.prompt,
    )
    train_without_noise(model)
    return model


def run(part: Part) -> None:
    """All measurements of the size that the part is named after."""
    sizes = TINY if part.tiny else REAL
    model = build(part, part.name)
    name = torch.cuda.get_device_name() if part.device == "cuda" else "cpu"
    peak = known_peak(name) or measured_peak(part.device, 8192 if part.device == "cuda" else 512)
    states = state_bytes(OptimSection(master_weights=True), model)
    part.add("parameters", model.num_parameters())
    part.add("peak", {"flops": peak, "from": "data sheet" if known_peak(name) else "a large product, measured"})
    part.add("optimizer_gib", round(states / 2**30, 2))
    # The optimizer's memory, AdamW's with float32 weights, is taken and not used: every peak below counts it.
    reserved = unless_out_of_memory(lambda: torch.empty(states, dtype=torch.uint8, device=part.device), part.device)
    if reserved is None:
        part.summary = "out of memory with weights and the optimizer's state alone"
        return
    training, sampling, longest = [], [], {}
    for length in sizes.lengths:
        for layout, checkpointing in WAYS:
            what = f"training, {length} tokens, {described(layout, checkpointing)}"
            if part.time_for(what, 10):
                training.append(train_at(model, part.device, sizes, length, layout, checkpointing, peak))
                part.add("training", training)
    del reserved
    for length in sizes.lengths:
        if part.time_for(f"sampling, {length} tokens", 10):
            sampling.append(sample_at(model, part.device, sizes, length))
            part.add("sampling", sampling)
    for layout, checkpointing in WAYS:
        what = described(layout, checkpointing)
        if part.time_for(f"longest context, {what}", 10):
            longest[what] = longest_context(part, model, sizes, layout, checkpointing, states)
            part.add("longest", longest)
    fastest = [max((row["tokens_per_s"] or 0 for row in rows), default=0) for rows in (training, sampling)]
    part.summary = f"training up to {fastest[0]:,} tokens/s, sampling up to {fastest[1]:,} tokens/s"


def described(layout: str, checkpointing: bool) -> str:
    return f"{layout}{', checkpointing' if checkpointing else ''}"


def set_checkpointing(model: Any, on: bool) -> None:
    """As `realrl train` does; newer versions of transformers warn of the older names."""
    if on:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    else:
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    train_without_noise(model)


def step_of(model: Any, batch: Any, budget: int, layout: str) -> Callable[[], object]:
    """Forward and backward of one mini-batch; a group with one rollout learns, too."""
    autocast = torch.bfloat16 if model.dtype == torch.bfloat16 else None
    objective = {"type": "real", "degenerate_groups": "use"}
    step = gradient_step(model, objective, budget=budget, layout=layout, autocast=autocast)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        step.backward(batch, None, None)

    return run


def train_at(model, device, sizes: Sizes, length: int, layout: str, checkpointing: bool, peak: float) -> dict[str, Any]:
    """One group of 8 responses; where memory runs out, the budget of a micro-batch is halved as in a run."""
    batch = make_batch(1, ROWS, length, sizes.vocabulary, device, prompt=sizes.prompt)
    set_checkpointing(model, checkpointing)
    budget, times = sizes.micro_batch_tokens, None
    while times is None:
        forget_peak(device)
        step = step_of(model, batch, budget, layout)
        times = unless_out_of_memory(lambda: seconds(step, device, REPEATS), device)  # noqa: B023  called at once
        if times is None and budget <= length + sizes.prompt:
            break
        budget = budget if times else max(budget // 2, length + sizes.prompt)
    took = statistics.median(times) if times else None
    model.zero_grad(set_to_none=True)
    set_checkpointing(model, False)
    return {
        "response_tokens": length,
        "layout": layout,
        "checkpointing": checkpointing,
        "micro_batch_tokens": budget,
        "seconds": took,
        "tokens_per_s": round(ROWS * length / took) if took else None,
        "mfu": round(useful_flops(model, length, sizes.prompt) / took / peak, 4) if took else None,
        "peak_gib": round(peak_bytes(device) / 2**30, 2) if took else None,
    }


def useful_flops(model: Any, length: int, prompt: int) -> float:
    """Of forward and backward of a group: 6 a weight and token, and causal attention, with the prompt computed once.

    Tied weights are counted once, since looking up an embedding multiplies nothing. Work done twice is not counted.
    """
    config = model.config
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    seen = ROWS * (prompt * length + length**2 / 2) + prompt**2 / 2
    return 6.0 * model.num_parameters() * (ROWS * length + prompt) + 12.0 * config.num_hidden_layers * width * seen


def sample_at(model, device, sizes: Sizes, length: int) -> dict[str, Any]:
    """Tokens a second that rows of one prompt decode where prompt and response together have `length` tokens."""
    rows, decoded = sizes.sampled_rows, None
    batch = make_batch(1, 1, 1, sizes.vocabulary, device, prompt=length - sizes.decoded)
    sampler = make_sampler(model)

    def decode() -> tuple[float, int]:
        forget_peak(device)
        # Both have the prompt and the first token.
        short, whole = (seconds(lambda n=n: sample(sampler, batch, n, rows), device, 1)[0] for n in (1, sizes.decoded + 1))
        return max(whole - short, 1e-9), peak_bytes(device)

    while rows and decoded is None:
        decoded = unless_out_of_memory(decode, device)
        rows = rows if decoded else rows // 2
    return {
        "context": length,
        "rows": rows,
        "tokens_per_s": round(rows * sizes.decoded / decoded[0]) if decoded else None,
        "ms_per_token": round(1000 * decoded[0] / sizes.decoded, 2) if decoded else None,
        "peak_gib": round(decoded[1] / 2**30, 2) if decoded else None,
    }


def longest_context(part: Part, model, sizes: Sizes, layout: str, checkpointing: bool, states: int) -> dict[str, Any]:
    """The longest single response, in tokens, whose forward and backward fit beside the optimizer's state.

    Doubled until it does not fit or is the longest that is tried, then three halvings of the gap.
    """
    set_checkpointing(model, checkpointing)

    def attempt(length: int) -> bool:
        reserved = torch.empty(states, dtype=torch.uint8, device=part.device)
        batch = make_batch(1, 1, length, sizes.vocabulary, part.device, prompt=sizes.prompt)
        step_of(model, batch, length + sizes.prompt, layout)()
        del reserved
        return True

    def fits(length: int) -> bool:
        model.zero_grad(set_to_none=True)
        return bool(unless_out_of_memory(lambda: attempt(length), part.device))

    good, bad, bounded_by = 0, None, "memory"
    length, halvings = sizes.lengths[0], 0
    while halvings < 3:
        if part.left < 8:
            bounded_by = "time"
            break
        if fits(length):
            good = length
        else:
            bad = length
        if good == sizes.longest:
            bounded_by = "the longest that is tried"
            break
        if bad is None:
            length = min(2 * length, sizes.longest)
        else:
            halvings += 1
            length = (good + bad) // 2
    model.zero_grad(set_to_none=True)
    set_checkpointing(model, False)
    return {"tokens": good, "does_not_fit": bad, "bounded_by": bounded_by}
