"""From a recipe to everything a run needs, and the preflight report that says what is about to happen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import Config, SamplingSection
from realrl.data import load_problems, render_prompts, training_problems
from realrl.data.stream import PromptStream
from realrl.errors import ConfigError, DataError
from realrl.head import head_of, tokens_at_once
from realrl.models import load_model, load_tokenizer
from realrl.objectives import Objective, build_objective
from realrl.rewards import Grader, build_verifier
from realrl.sampling import HFSampler, Sampler, SamplingParams
from realrl.types import Prompt

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
class Run:
    """The parts that the training loop works with."""

    config: Config
    model: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    grader: Grader
    objective: Objective
    optimizer: torch.optim.Optimizer
    prompts: PromptStream
    held_out: dict[str, list[Prompt]]
    device: torch.device
    notes: list[str]


def prepare(config: Config, weights: str | None = None) -> Run:
    """Load data, model and grader; `weights` is a checkpoint to start from instead of `model.path`.

    Everything that can be wrong with the recipe's inputs is found here, before the run folder is touched.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.run.seed)
    device = choose_device(config.model.device)
    trust = config.model.trust_remote_code
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=trust)
    notes: list[str] = []
    prompts, sample = _training_prompts(config, tokenizer, notes)
    held_out = {name: _held_out(config, name, tokenizer, notes) for name in config.data.eval}
    grader = build_verifier(config.reward)
    objective = build_objective(config.objective)
    dtype = _DTYPES[config.model.dtype]
    load = functools.partial(load_model, dtype=dtype, device=device, trust_remote_code=trust)
    model = load(weights or config.model.path)
    reference = load(config.model.path).requires_grad_(False).eval() if objective.needs_ref else None
    model.train()
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.model.compile:
        model.compile()
    sampling_dtype = None if config.sampling.dtype == "same" else _DTYPES[config.sampling.dtype]
    optim = config.optim
    notes[:0] = _arithmetic(config, model, sample, reference is not None)
    return Run(
        config=config,
        model=model,
        reference=reference,
        tokenizer=tokenizer,
        sampler=HFSampler(model, tokenizer, dtype=sampling_dtype),
        grader=grader,
        objective=objective,
        optimizer=torch.optim.AdamW(
            model.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        ),
        prompts=prompts,
        held_out=held_out,
        device=device,
        notes=notes,
    )


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; asking for CUDA without one is a ConfigError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device = 'cuda', but torch sees no CUDA device; use 'auto' or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def sampling_params(sampling: SamplingSection, *, greedy: bool = False, top_p: float | None = None) -> SamplingParams:
    """The sampler's parameters from the recipe; greedy is temperature 0, `top_p` goes before the recipe's."""
    return SamplingParams(
        temperature=0.0 if greedy else sampling.temperature,
        top_p=top_p or sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        batch_rows=sampling.batch_rows,
    )


def _training_prompts(config: Config, tokenizer, notes: list[str]) -> tuple[PromptStream, Prompt]:
    data = config.data
    problems, lines = training_problems(data, config.run.seed)
    notes += lines
    endless = bool(getattr(problems, "endless", False))
    # An endless task is looked at through its first problems; a finite set is rendered whole and once.
    shown = [problems[i] for i in range(256)] if endless else list(problems)
    rendered = render_prompts(shown, tokenizer, data)
    if not rendered.prompts:
        raise DataError(
            f"data.train = {data.train!r}: all {len(shown)} prompts are longer than data.max_prompt_tokens = "
            f"{data.max_prompt_tokens}; raise it or shorten system_prompt and examples"
        )
    if rendered.too_long:
        notes.append(
            f"WARNING: {rendered.too_long} of {len(shown)} training prompts exceed data.max_prompt_tokens = "
            f"{data.max_prompt_tokens} and are dropped"
        )
        if endless:
            raise DataError(f"data.train = {data.train!r}: raise data.max_prompt_tokens, a generated task is not filtered")
    else:
        notes.append(f"prompts over {data.max_prompt_tokens} tokens: none of {len(shown)} looked at")
    if endless:
        return PromptStream(
            problems,
            lambda problem: render_prompts([problem], tokenizer, data).prompts[0],
            endless=True,
            seed=config.run.seed,
        ), rendered.prompts[0]
    by_problem = {id(prompt.problem): prompt for prompt in rendered.prompts}
    kept = [prompt.problem for prompt in rendered.prompts]
    return PromptStream(kept, lambda problem: by_problem[id(problem)], endless=False, seed=config.run.seed), rendered.prompts[0]


def _held_out(config: Config, name: str, tokenizer, notes: list[str]) -> list[Prompt]:
    data = config.data
    loaded = load_problems(
        name,
        columns=data.columns,
        strict=data.strict,
        seed=config.run.seed,
        task_options=data.task,
        count=config.eval.problems,
        split="eval",
    )
    notes += loaded.warnings()
    problems = [loaded.problems[i] for i in range(min(config.eval.problems, len(loaded.problems)))]
    rendered = render_prompts(problems, tokenizer, data)
    if not rendered.prompts:
        raise DataError(f"data.eval {name!r}: no prompt fits data.max_prompt_tokens = {data.max_prompt_tokens}")
    if rendered.too_long:
        notes.append(f"WARNING: {rendered.too_long} of {len(problems)} held-out prompts of {name} are too long and dropped")
    return rendered.prompts


def _arithmetic(config: Config, model: PreTrainedModel, sample: Prompt, has_reference: bool) -> list[str]:
    """The batch arithmetic, a memory estimate and one prompt as the model will see it."""
    train, group_size = config.train, config.sampling.group_size
    parameters = sum(p.numel() for p in model.parameters())
    width = 4 if config.model.dtype == "float32" else 2
    # Weights, gradients and two moments; the sampling copy and the reference model; logits of one chunk (of a micro-batch,
    # where the head is not known) in float32 with their gradient and one temporary.
    held = parameters * width * (4 + has_reference) + (parameters * 2 if config.sampling.dtype == "bfloat16" else 0)
    tokens = min(train.micro_batch_tokens, train.mini_batch_prompts * group_size * config.sampling.max_new_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    if head_of(model) is not None:
        tokens = min(tokens, tokens_at_once(vocabulary))
    logits = tokens * vocabulary * 12
    lines = [
        f"{train.prompts_per_step} prompts × {group_size} rollouts = {train.prompts_per_step * group_size:,} rollouts a step, "
        f"{config.updates_per_step} optimizer step{'s' if config.updates_per_step > 1 else ''} of "
        f"{train.mini_batch_prompts} groups, {train.steps:,} steps",
        f"model {config.model.path}: {parameters / 1e6:,.1f} M parameters; memory estimate: weights, gradients and optimizer "
        f"{held / 2**30:.1f} GiB, logits up to {logits / 2**30:.1f} GiB, activations not counted",
        f"data columns: id, problem, answer; first gold: {sample.problem.answer!r}",
        f"first prompt ({len(sample.token_ids)} tokens): {sample.text!r}",
    ]
    if group_size == 1:
        lines.append(
            "WARNING: sampling.group_size = 1: a group of one is always all right or all wrong, so a group objective learns "
            "nothing; use 8"
        )
    return lines
