"""How much memory a run needs at its peak and disk at its end, counted before it starts, and how much of both is free."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from realrl.config import Config
from realrl.models.head import tokens_at_once
from realrl.models.precision import sampling_dtype
from realrl.models.shape import Shape
from realrl.sampling.cache import BLOCK
from realrl.training.estimate import Lengths, evaluations, micro_batches
from realrl.training.optim import state_bytes

# Python, torch, transformers and pyarrow after a round with a tiny model: resident memory on Linux.
_PROCESS = 650 << 20
# The context of a device and the workspaces of its libraries.
_CONTEXT = 500 << 20
# Bytes of a 4-bit weight with its scales.
_QUANTISED = 0.5 + 4 / 64
# Values per token that a layer keeps for its backward pass, counted in the layers of Llama and Qwen2 of transformers: vectors
# of the hidden size (two norms, twice the residual, the inputs of two products), of the intermediate size, queries and keys.
_HIDDEN, _INTERMEDIATE, _QUERIES, _KEYS = 6, 4, 2, 2
# Bytes of the values of hidden size if products are in bfloat16: norms stay in float32.
_HIDDEN_BYTES_MIXED = 26
# Bytes per token in compressed Parquet: of a rollout's text, and of token id and log-ratio.
_TEXT_BYTES, _TOKEN_BYTES = 2, 6
_TOKENIZER_BYTES = 4 << 20


def weight_bytes(model: PreTrainedModel, quantize: str, *, learning: bool = False) -> float:
    """Bytes of the weights, or of the trained ones alone with `learning`. Linear layers of a quantised model have 4 bits."""
    packed = set()
    if quantize != "none":
        head = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        packed = {id(m.weight) for m in linear if not m.weight.requires_grad}
    return sum(
        p.numel() * (_QUANTISED if id(p) in packed else p.element_size())
        for p in model.parameters()
        if p.requires_grad or not learning
    )


def memory_parts(
    config: Config, model: PreTrainedModel, lengths: Lengths, problems: int, *, device: str, ranks: int = 1
) -> dict[str, float]:
    """Bytes that one process needs at its peak, by part: GPU memory unless `device` is "cpu".

    `model` may be on the device "meta"; `problems` is the size of the largest held-out set. The recipe's precisions must be
    settled. Sharded weights (`train.parallel = "fsdp2"`) are divided by `ranks`.
    """
    section, shape = config.model, Shape.of(model)
    shards = ranks if config.train.parallel == "fsdp2" else 1
    weights = weight_bytes(model, section.quantize)
    copied = shards > 1 or config.sampling.steps_ahead > 0 or config.sampling.dtype not in ("same", section.dtype)
    copy = shape.parameters * (2 if sampling_dtype(config) == "bfloat16" else 4) if copied else 0
    gradients = weight_bytes(model, section.quantize, learning=True) / shards
    needs_ref = config.objective.needs_ref and section.lora is None
    reference = weights / shards if needs_ref else 0
    parts = {
        "weights, gradients and optimizer": (weights + state_bytes(config.optim, model)) / shards + copy,
        "activations": activation_bytes(config, shape, lengths),
        "logits": _logits_bytes(config, shape, lengths),
        "process": float(_PROCESS if device == "cpu" else _CONTEXT),
    }
    # While responses are sampled there are no gradients; an offloaded reference is on the device only then.
    update = gradients + parts["activations"] + parts["logits"]
    sampling = _sampling_bytes(config, shape, lengths, problems, ranks)
    if sampling > update:
        del parts["activations"], parts["logits"]
        parts["sampling"] = sampling
    else:
        parts["weights, gradients and optimizer"] += gradients
    if section.offload_reference:
        reference = max(0.0, reference - gradients)
    parts["weights, gradients and optimizer"] += reference
    return parts


def activation_bytes(config: Config, shape: Shape, lengths: Lengths) -> float:
    """Bytes that the layers keep for the backward pass of the largest micro-batch."""
    train, size = config.train, config.sampling.group_size
    cut = micro_batches(train.mini_batch_prompts, size, lengths, train.micro_batch_tokens)
    prompts = max(1.0, cut.rows / size)
    checkpointing = config.model.gradient_checkpointing
    shared = train.layout in ("auto", "tree")
    own = lengths.prompt - lengths.common
    # The last token of a response is predicted, but predicts nothing.
    steps = lengths.response - 1 if shared else lengths.response
    tokens = (prompts * own + lengths.common if shared else cut.rows * lengths.prompt) + cut.rows * steps
    mixed = "bfloat16" in (config.model.autocast, config.model.dtype)
    width = 2 if mixed else 4
    hidden = _HIDDEN_BYTES_MIXED if mixed else _HIDDEN * width
    layer = tokens * (
        hidden * shape.hidden + width * (_INTERMEDIATE * shape.intermediate + _QUERIES * shape.queries + _KEYS * shape.keys)
    )
    # Autocast keeps rounded copies of the weights.
    rounded = 2 * shape.linear if config.model.autocast == "bfloat16" else 0
    if checkpointing:
        return shape.layers * tokens * shape.hidden * width + layer + rounded
    return shape.layers * layer + rounded


def _logits_bytes(config: Config, shape: Shape, lengths: Lengths) -> float:
    """The exponentials that are kept, in float32, and the head's gradient."""
    tokens = min(
        config.train.mini_batch_prompts * config.sampling.group_size * lengths.response, tokens_at_once(shape.vocabulary)
    )
    return 4 * shape.vocabulary * (tokens + 2 * shape.hidden * shape.head_learns)


def _sampling_bytes(config: Config, shape: Shape, lengths: Lengths, problems: int, ranks: int) -> float:
    """Keys and values of the rows that are sampled together, and the largest tensors while their prompts are computed."""
    section, width = config.sampling, 2 if sampling_dtype(config) == "bfloat16" else 4
    rounds = [(config.train.prompts_per_step, section.group_size)]
    if problems:
        rounds += [(problems, config.eval.samples), (problems, 1)]
    # The cache has room for a block of new tokens.
    block = min(BLOCK, section.max_new_tokens)
    columns = lengths.prompt + math.ceil(section.max_new_tokens / block) * block
    most = 0.0
    for prompts, size in rounds:
        rows = min(math.ceil(prompts / ranks) * size, section.batch_rows)
        prefilled = math.ceil(rows / size) * (lengths.prompt - lengths.common) + lengths.common
        cache = 2 * shape.layers * shape.keys * (rows * columns + prefilled)
        most = max(most, width * (cache + prefilled * (3 * shape.intermediate + 4 * shape.hidden)))
    return most


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU, or of this machine within the limits of its container; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _figures("/proc/meminfo").get("MemAvailable")
    if free is None:
        return None
    free *= 1024
    for folder, most, used, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    ):
        limit, usage = (_number(f"{folder}/{name}") for name in (most, used))
        if limit is not None and usage is not None:
            # Cached files count as used, but are freed on demand.
            free = min(free, limit - usage + _figures(f"{folder}/memory.stat").get(cached, 0))
    return max(free, 0)


def _figures(path: str) -> dict[str, int]:
    """A file whose lines hold a name and a number, as a mapping."""
    try:
        lines = [line.replace(":", " ").split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def disk_parts(config: Config, model: PreTrainedModel, lengths: Lengths, problems: Sequence[int]) -> dict[str, float]:
    """Bytes of all files of a run, by part. `problems`: the size of each held-out set."""
    section, steps = config.checkpoint, config.train.steps
    made = math.ceil(steps / section.every) if section.every else 1
    saved = weight_bytes(model, config.model.quantize, learning=config.model.lora is not None)
    one = saved + state_bytes(config.optim, model) + _TOKENIZER_BYTES
    row = (lengths.prompt + lengths.response) * _TEXT_BYTES
    rollouts = (
        config.train.prompts_per_step * config.sampling.group_size * (row + config.log.tokens * _TOKEN_BYTES * lengths.response)
    )
    evaluated = sum(problems) * (config.eval.samples + config.eval.greedy) * row
    return {
        # The newest is written before the oldest is removed.
        "checkpoints": one * min(made, section.keep + 1),
        "rollouts and evaluations": config.log.rollouts * steps * rollouts + evaluations(config) * evaluated,
    }


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet. Quotas are not seen."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
