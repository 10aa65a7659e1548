"""From a recipe to all parts of a run, and the preflight report that says what is about to happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import Config, SamplingSection
from realrl.data import check_held_out, held_out_problems, render_prompt, render_prompts, training_problems
from realrl.data.stream import PromptStream
from realrl.data.tasks import TASKS
from realrl.errors import ConfigError, DataError, ModelError
from realrl.models import Reference, layer_shape, load_model, load_tokenizer, too_long_for
from realrl.models.adapters import add_lora, check_same_lora, merge_adapters
from realrl.models.logprobs import layout_of
from realrl.models.modes import train_without_noise
from realrl.models.precision import precision_notes, sampling_dtype, settle, training_dtype
from realrl.models.rotary import fix_rotary
from realrl.objectives import Groups, Objective, build_objective
from realrl.rewards import Grader, build_grader
from realrl.rundir.paths import RunPaths
from realrl.sampling import SAMPLERS, Sampler, SamplingParams, build_sampler
from realrl.system.hardware import Rates, choose_device, measure_rates
from realrl.training.distributed import World, shard
from realrl.training.footprint import free_disk, free_memory
from realrl.training.forecast import Outlook, lengths_of, lengths_so_far, sketch_of
from realrl.training.optim import build_optimizer
from realrl.training.verdicts import try_verifier
from realrl.types import Problem, Prompt

# The most problems of a generated task that are compared with the held-out ones; takes about a second.
_LOOKED_AT = 1 << 14


@dataclass(slots=True)
class Run:
    """The parts that the training loop works with.

    `micro_batch_tokens` replaces the recipe's value after memory ran out (training/retry.py).
    """

    config: Config
    model: PreTrainedModel
    reference: Reference | None
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    grader: Grader
    objective: Objective
    optimizer: torch.optim.Optimizer
    prompts: PromptStream
    held_out: dict[str, list[Prompt]]
    device: torch.device
    rates: Rates
    notes: list[str]
    world: World = World()
    micro_batch_tokens: int | None = None


def prepare(config: Config, world: World, weights: str | None = None, start: int = 0) -> Run:
    """Load data, model and grader. `weights` is a checkpoint after `start` rounds that replaces `model.path`.

    Precisions that the recipe leaves to "auto" are decided here (`Run.config` has them). Under FSDP2 the model is sharded after
    the sampler has copied it. All checks of the recipe's inputs happen here, before the run folder is touched.
    """
    # A sampler that cannot be imported is refused before anything is loaded.
    SAMPLERS.find(config.sampling.engine)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    # Before any thread starts. A sharp policy has probabilities below 1e-38, which are slow to compute with.
    torch.set_flush_denormal(True)
    torch.manual_seed(config.run.seed)
    device = choose_device(config.model.device, world.local_rank)
    trust = config.model.trust_remote_code
    with world.main_first():
        # A built-in model is written to disk at its first use.
        tokenizer = load_tokenizer(config.model.path, trust_remote_code=trust)
    rates = world.of_main(measure_rates(device, *layer_shape(config.model.path, trust_remote_code=trust)))
    config = settle(config, rates)
    uses = {"training": training_dtype(config), "sampling": sampling_dtype(config)}
    notes = precision_notes(rates, uses, 'set model.dtype, model.autocast and sampling.dtype to "auto"')
    prompts, shown, longest = _training_prompts(config, tokenizer, notes)
    held_out = {name: _held_out(config, name, tokenizer, notes) for name in config.data.eval}
    notes += _shared_problems(config, prompts, held_out)
    notes[:0] = _outlook(config, rates, shown, held_out, start, world)
    grader = _verifier(config, [shown[0].problem, shown[-1].problem], notes)
    objective = build_objective(config.objective)
    model = load_policy(config, device, weights, notes)
    reference = _load_reference(config, device, model) if objective.needs_ref else None
    _check_layout(config, [model, *([reference.own] if reference and reference.own else [])], longest)
    if config.model.compile:
        model.compile()
    notes[:0] = _arithmetic(config, model, objective, shown[0])
    if warning := too_long_for(model, longest, config.sampling.max_new_tokens):
        notes.append(warning)
    if world.size > 1:
        notes.insert(0, f"{world.size} ranks, {config.train.parallel}")
    sharded = world.size > 1 and config.train.parallel == "fsdp2"
    # While it samples, its weights must be whole and must not change.
    copy = sharded or config.sampling.steps_ahead > 0
    sampler = build_sampler(config, model, tokenizer, longest_prompt=longest, copy=copy)
    if sharded:
        for one in (model, reference and reference.own):
            if one is not None:
                shard(one, bfloat16=config.model.autocast == "bfloat16")
    return Run(
        config=config,
        model=model,
        reference=reference,
        tokenizer=tokenizer,
        sampler=sampler,
        grader=grader,
        objective=objective,
        optimizer=build_optimizer(config.optim, model),
        prompts=prompts,
        held_out=held_out,
        device=device,
        rates=rates,
        notes=notes,
        world=world,
    )


def _verifier(config: Config, problems: Sequence[Problem], notes: list[str]) -> Grader:
    """The grader of the recipe, after a trial on the problems. Raises ConfigError if it cannot be built or used."""
    grader = build_grader(config.reward)
    try:
        notes += try_verifier(grader, config, problems)
    except BaseException:
        grader.close()
        raise
    return grader


def _check_layout(config: Config, models: Sequence[PreTrainedModel], longest_prompt: int) -> None:
    """Try each model's layout on the longest rows, before sharding. Raises ModelError if `train.layout` is not exact for it."""
    for model in models:
        try:
            layout = None if config.train.layout == "auto" else config.train.layout
            layout_of(model, layout, longest=longest_prompt + config.sampling.max_new_tokens)
        except ModelError as error:
            raise ModelError(f"model.path = {config.model.path!r}, train.layout = {config.train.layout!r}: {error}") from error


def load_policy(config: Config, device: torch.device, weights: str | None, notes: list[str] | None = None) -> PreTrainedModel:
    """The model ready to train: the checkpoint `weights`, or `model.path` with its adapters merged and new ones if asked for.

    Remarks for the preflight report are added to `notes`.
    """
    section = config.model
    if section.quantize != "none" and config.sampling.dtype not in ("same", section.dtype):
        raise ConfigError(
            f"model.quantize = {section.quantize!r} samples from the model in training, whose dtype is {section.dtype}, and "
            f"sampling.dtype = {config.sampling.dtype!r} asks for a copy; set sampling.dtype = 'same'"
        )
    model = load_model(
        weights or section.path,
        dtype=getattr(torch, section.dtype),
        device=device,
        trust_remote_code=section.trust_remote_code,
        quantize=section.quantize,
        attention=section.attention,
    )
    if weights:
        check_same_lora(model, section.lora, weights)
    else:
        merge_adapters(model)
        if section.lora is not None:
            add_lora(model, section.lora, seed=config.run.seed)
    if note := fix_rotary(model, _most_tokens(config)):
        (notes if notes is not None else []).append(note)
    if section.gradient_checkpointing:
        # Newer versions of transformers warn about the older name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise ModelError(f"model.gradient_checkpointing = true: {error} Set it to false.") from error
    train_without_noise(model)
    return model


def _most_tokens(config: Config) -> int:
    """Tokens of the longest row that the recipe allows."""
    return config.data.max_prompt_tokens + config.sampling.max_new_tokens


def _load_reference(config: Config, device: torch.device, policy: PreTrainedModel) -> Reference:
    """The model that the run started from: the policy without its adapters, or a copy on the device or in main memory."""
    section = config.model
    if section.lora is not None:
        return Reference(policy, shared=True)
    rest = torch.device("cpu") if section.offload_reference else device
    model = load_model(
        section.path,
        dtype=getattr(torch, section.dtype),
        device=rest,
        trust_remote_code=section.trust_remote_code,
        attention=section.attention,
    )
    merge_adapters(model)
    fix_rotary(model, _most_tokens(config))
    return Reference(model, device=device if section.offload_reference else None)


def sampling_params(sampling: SamplingSection, *, greedy: bool = False, top_p: float | None = None) -> SamplingParams:
    """The sampler's parameters from the recipe. `greedy` means temperature 0; `top_p` replaces the recipe's value."""
    return SamplingParams(
        temperature=0.0 if greedy else sampling.temperature,
        top_p=top_p or sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        batch_rows=sampling.batch_rows,
    )


def _training_prompts(config: Config, tokenizer, notes: list[str]) -> tuple[PromptStream, list[Prompt], int]:
    """The stream of training prompts, the prompts that were rendered to check them, and the length of the longest in tokens."""
    data = config.data
    problems, lines = training_problems(data, config.run.seed)
    notes += lines
    endless = bool(getattr(problems, "endless", False))
    # Of an endless task the first problems are checked; a finite set is rendered once, as a whole.
    shown = [problems[i] for i in range(256)] if endless else list(problems)
    rendered = render_prompts(shown, tokenizer, data)
    if not rendered.prompts:
        raise DataError(
            f"data.train = {data.train!r}: all {len(shown)} prompts are longer than data.max_prompt_tokens = "
            f"{data.max_prompt_tokens}; raise it, or shorten data.system_prompt and data.examples"
        )
    longest = max(len(prompt.token_ids) for prompt in rendered.prompts)
    if rendered.too_long:
        notes.append(
            f"WARNING: {rendered.too_long} of {len(shown)} training prompts exceed data.max_prompt_tokens = "
            f"{data.max_prompt_tokens} and are left out"
        )
        if endless:
            raise DataError(
                f"data.train = {data.train!r}: problems of a generated task cannot be left out; raise data.max_prompt_tokens"
            )
    else:
        notes.append(f"prompts over {data.max_prompt_tokens} tokens: none of {len(shown)} checked")
    if endless:

        def render(problem: Problem) -> Prompt:
            prompt = render_prompt(problem, tokenizer, data)
            if len(prompt.token_ids) > data.max_prompt_tokens:
                raise DataError(
                    f"the prompt of {problem.id} has {len(prompt.token_ids)} tokens, more than data.max_prompt_tokens = "
                    f"{data.max_prompt_tokens}, and problems of a generated task cannot be left out; raise it, then --resume"
                )
            return prompt

        stream = PromptStream(problems, render, endless=True, seed=config.run.seed)
        return stream, rendered.prompts, longest
    by_problem = {id(prompt.problem): prompt for prompt in rendered.prompts}
    kept = [prompt.problem for prompt in rendered.prompts]
    if len(kept) < config.train.prompts_per_step:
        notes.append(
            f"WARNING: data.train = {data.train!r} has {len(kept)} problems and train.prompts_per_step is "
            f"{config.train.prompts_per_step}: a round holds problems more than once"
        )
    stream = PromptStream(kept, lambda problem: by_problem[id(problem)], endless=False, seed=config.run.seed)
    return stream, rendered.prompts, longest


def _held_out(config: Config, name: str, tokenizer, notes: list[str]) -> list[Prompt]:
    data = config.data
    found = held_out_problems(data, name, seed=config.run.seed, count=config.eval.problems, strict=data.strict)
    notes += found.warnings
    rendered = render_prompts(found.problems, tokenizer, data)
    if not rendered.prompts:
        raise DataError(f"data.eval {name!r}: no prompt fits data.max_prompt_tokens = {data.max_prompt_tokens}")
    if rendered.too_long:
        notes.append(
            f"WARNING: {rendered.too_long} of {len(found.problems)} held-out prompts of {name} are too long and left out"
        )
    return rendered.prompts


def _shared_problems(config: Config, stream: PromptStream, held_out: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """Warnings about held-out problems that are also training problems. Raises DataError if a set has no others."""
    # A generated task never trains on its own held-out problems.
    generated = config.data.train in TASKS
    sets = {
        name: [prompt.problem for prompt in prompts] for name, prompts in held_out.items() if not (generated and name in TASKS)
    }
    if not sets:
        return []
    draws = min(config.train.steps * config.train.prompts_per_step, _LOOKED_AT)
    return check_held_out(config.data, stream.problems(draws), sets)


def _outlook(
    config: Config, rates: Rates, shown: Sequence[Prompt], held_out: Mapping[str, Sequence[Prompt]], start: int, world: World
) -> list[str]:
    """Time, memory and disk that the rest of the run needs. Raises ConfigError if memory or disk is certainly too small."""
    lengths = lengths_of(shown, config)
    if start:
        lengths = lengths_so_far(lengths, RunPaths(Path(config.run.dir)).metrics)
    counts = {name: len(prompts) for name, prompts in held_out.items()}
    outlook = Outlook(config, sketch_of(config)[0], rates, lengths, counts, start, world.size)
    outlook.check_disk()
    memory = free_memory(choose_device(config.model.device, world.local_rank))
    return [*outlook.time_lines(), *outlook.space_lines(memory, free_disk(Path(config.run.dir)))]


def _arithmetic(config: Config, model: PreTrainedModel, objective: Objective, sample: Prompt) -> list[str]:
    """The batch arithmetic, the model and one prompt as the model will see it."""
    train, group_size = config.train, config.sampling.group_size
    parameters, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    lines = [
        f"{train.prompts_per_step} prompts × {group_size} rollouts = {train.prompts_per_step * group_size:,} rollouts a round, "
        f"{config.updates_per_step} optimizer step{'s' if config.updates_per_step > 1 else ''} of "
        f"{train.mini_batch_prompts} groups, {train.steps:,} rounds",
        f"model {config.model.path}: {parameters / 1e6:,.1f} M parameters"
        + (f", {trainable / 1e6:,.2f} M in training" if trainable < parameters else ""),
        f"first prompt ({len(sample.token_ids)} tokens): {sample.text!r}; its gold: {sample.problem.answer!r}",
    ]
    if config.model.dtype == "bfloat16" and config.model.lora is None and not config.optim.master_weights:
        lines.append(
            f"WARNING: model.dtype = 'bfloat16' without optim.master_weights: rounding to 8 bits loses the updates of weights "
            f"larger than {512 * config.optim.lr:.0e} (512 × optim.lr), which are nearly all; set optim.master_weights = true"
        )
    # One right and one wrong response, each a group of its own.
    apart = objective.teaching_groups(Groups(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]), torch.tensor([1, 1])))
    if group_size == 1 and not apart.any():
        lines.append(
            f"WARNING: sampling.group_size = 1: objective.type = {config.objective.type!r} learns from groups with right and "
            "wrong responses, and a group of one has only one kind; use 8"
        )
    return lines
