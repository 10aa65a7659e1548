"""What a run will compute: operations of sampling, training and evaluation, and their time.

Pure arithmetic over the model's shape, the recipe and assumed lengths. Every prompt and every response has the mean length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from realrl.config import Config
from realrl.models.head import tokens_at_once
from realrl.models.precision import sampling_dtype, training_dtype
from realrl.models.shape import Shape
from realrl.objectives import ScoreObjective, build_objective
from realrl.system.hardware import Rates

# Bytes that an update moves for each trained parameter: gradient, weight and two moments, read and written in float32.
_OPTIMIZER_BYTES = 40


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of prompts and responses. `common`: tokens that all prompts start with, which are computed once.

    `active`: the share of groups that carry a gradient.
    """

    prompt: float
    response: float
    common: float = 0.0
    active: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of what a processor does.

    `forward` and `backward`: floating-point operations of matrix products, attention included. `tokens` and `learnt`: hidden
    values of tokens, over all layers, that a forward or a backward pass computes. `launches`: layers started, including the
    fixed cost of each pass. `moved`: bytes that are used once: weights and cache for each new token, the optimizer's state.
    """

    forward: float = 0.0
    backward: float = 0.0
    tokens: float = 0.0
    learnt: float = 0.0
    launches: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(getattr(self, f.name) * factor for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Besides:
    """The cost of work other than matrix products, as floating-point operations of a float32 product that take as long.

    `forward` and `backward`: one hidden value of a token in a layer. `launch`: starting a layer on one thread. `byte`: moving
    a byte.
    """

    forward: float
    backward: float
    launch: float = 4.5e7
    byte: float = 13


# For CPUs, measured by benchmarks/costs.py. On a slower processor, all work is assumed to be slower by the same factor.
_CPU = {"float32": Besides(forward=4300, backward=5200), "bfloat16": Besides(forward=2600, backward=22_000)}
# Starting a pass and drawing its tokens costs as much as starting this many layers.
_PASS_LAYERS = 6
# A byte of the cache costs as much as this many bytes of weights: heads read it in small pieces.
_CACHE_READS = 2
# For GPUs, assumed, not measured: the share of a plain product's rate that a model reaches, seconds to start a layer, and
# operations in the time that moving a byte takes.
_GPU_SHARE, _GPU_LAUNCH, _GPU_BYTE = 0.4, 1.8e-4, 200


def seconds(work: Work, rates: Rates, dtype: str) -> float:
    """How long the work takes in "float32" or "bfloat16" products."""
    speed = rates.of(dtype)
    products = work.forward / speed.forward + work.backward / speed.backward
    if rates.device != "cpu":
        return products / _GPU_SHARE + work.launches * _GPU_LAUNCH + work.moved * _GPU_BYTE / speed.forward
    costs = _CPU[dtype]
    rest = work.tokens * costs.forward + work.learnt * costs.backward + work.moved * costs.byte
    return products + (rest + work.launches * costs.launch * rates.threads) / rates.float32.forward


def sampling_work(
    shape: Shape, prompts: int, samples: int, lengths: Lengths, *, rows_at_once: int, longest: int, width: int
) -> Work:
    """`samples` responses to each of `prompts` prompts, at most `rows_at_once` at a time; the longest of a batch has `longest`
    tokens. `width`: bytes of a value in the sampler."""
    rows, own = prompts * samples, lengths.prompt - lengths.common
    # The last position of the prompt gives the first token.
    steps = max(lengths.response - 1, 0)
    read = rows * steps * (lengths.prompt + (steps + 1) / 2)
    at_once = min(rows, rows_at_once)
    passes = max(rows * steps / at_once, longest - 1)
    attention = prompts * own * lengths.prompt + lengths.common**2 + read
    tokens = prompts * own + lengths.common + rows * steps
    head = rows * lengths.response * shape.vocabulary * shape.hidden
    weights = shape.linear + shape.vocabulary * shape.hidden
    return Work(
        forward=2 * shape.linear * tokens + 4 * shape.layers * shape.queries * attention + 2 * head,
        tokens=tokens * shape.layers * shape.hidden,
        launches=(passes + math.ceil(rows / at_once)) * (shape.layers + _PASS_LAYERS),
        moved=width * (passes * weights + _CACHE_READS * 2 * shape.layers * shape.keys * read),
    )


@dataclass(frozen=True, slots=True)
class Micro:
    """How an update is cut: `parts` micro-batches, `prompts` computed in all of them, and `rows` responses in the largest."""

    parts: int
    prompts: float
    rows: float


def micro_batches(groups: float, size: int, lengths: Lengths, budget: int) -> Micro:
    """As `training.batching` cuts groups of equal lengths: whole groups if one fits, otherwise rows with their prompt."""
    own = lengths.prompt - lengths.common
    at_once = math.floor(max(budget - lengths.common, 0) / (own + size * lengths.response))
    if at_once:
        return Micro(math.ceil(groups / at_once), groups, min(at_once, groups) * size)
    rows = max(1, min(size, math.floor((budget - lengths.prompt) / lengths.response)))
    parts = math.ceil(groups * math.ceil(size / rows))
    return Micro(parts, parts, rows)


def forward_work(shape: Shape, groups: float, size: int, lengths: Lengths, *, shared: bool, budget: int) -> Work:
    """Log-probabilities of `groups` groups of `size` responses; `shared`: a prompt is computed once for its responses."""
    cut, rows = micro_batches(groups, size, lengths, budget), groups * size
    prompt, response, common = lengths.prompt, lengths.response, lengths.common
    if shared:
        steps, own = max(response - 1, 0), prompt - common
        tokens = cut.prompts * own + cut.parts * common + rows * steps
        attention = cut.prompts * own * prompt + cut.parts * common**2 + rows * steps * (prompt + steps)
    else:
        tokens, attention = rows * (prompt + response), rows * (prompt + response) ** 2
    head = rows * response * shape.vocabulary * shape.hidden
    return Work(
        forward=2 * shape.linear * tokens + 4 * shape.layers * shape.queries * attention + 2 * head,
        tokens=tokens * shape.layers * shape.hidden,
        launches=cut.parts * (shape.layers + _PASS_LAYERS),
    )


def backward_work(
    shape: Shape, groups: float, size: int, lengths: Lengths, *, shared: bool, budget: int, checkpointing: bool
) -> Work:
    """The backward pass after `forward_work`: gradients of inputs and of trained weights, and what is recomputed."""
    forward = forward_work(shape, groups, size, lengths, shared=shared, budget=budget)
    cut = micro_batches(groups, size, lengths, budget)
    head = 2 * groups * size * lengths.response * shape.vocabulary * shape.hidden
    layers = forward.forward - head
    frozen = 2 * (shape.linear - shape.learning) * forward.tokens / (shape.layers * shape.hidden)
    again = layers if checkpointing else 0.0
    if cut.rows * lengths.response > tokens_at_once(shape.vocabulary):
        again += head
    return Work(
        forward=again,
        backward=2 * layers - frozen + (2 if shape.head_learns else 1) * head,
        learnt=forward.tokens,
        tokens=forward.tokens if checkpointing else 0.0,
        launches=forward.launches * (2 + checkpointing),
    )


def update_work(config: Config, shape: Shape, lengths: Lengths) -> Work:
    """The updates of one round, including old and reference log-probabilities."""
    objective, train = build_objective(config.objective), config.train
    active = 1.0 if objective.kl.active else lengths.active
    size, groups = config.sampling.group_size, train.mini_batch_prompts * active
    checkpointing = config.model.gradient_checkpointing
    shared = train.layout in ("auto", "tree")
    cut = {"shared": shared, "budget": train.micro_batch_tokens}
    forward = forward_work(shape, groups, size, lengths, **cut)
    backward = backward_work(shape, groups, size, lengths, **cut, checkpointing=checkpointing)
    updates = config.updates_per_step
    # The first mini-batch needs no old log-probabilities: its policy is the one that sampled.
    forwards = updates + (updates - 1 if config.sampling.steps_ahead == 0 else 0)
    if isinstance(objective, ScoreObjective):
        whole = micro_batches(groups, size, lengths, train.micro_batch_tokens).prompts == groups
        if not (whole and objective.sums_over_groups and train.gradient_route != "two_pass"):
            # A forward pass for the scores, unless they are known to be 0.
            forwards += updates - 1 if objective.zero_scores_when_fresh else updates
    if objective.needs_ref:
        forwards += updates
    optimizer = Work(moved=_OPTIMIZER_BYTES * shape.trainable)
    return forward * forwards + (backward + optimizer) * updates


def evaluations(config: Config, start: int = 0) -> int:
    """How many evaluations come after `start` rounds."""
    steps, every = config.train.steps, config.eval.every
    due = {steps} | (set(range(every, steps + 1, every)) if every else set())
    return sum(step > start for step in due) + (config.eval.at_start and start == 0)


def evaluation_work(config: Config, shape: Shape, problems: int, lengths: Lengths, width: int) -> Work:
    """One evaluation on a set of `problems` problems."""
    section, work = config.sampling, Work()
    for samples in [config.eval.samples] + [1] * config.eval.greedy:
        work += sampling_work(
            shape,
            problems,
            samples,
            lengths,
            rows_at_once=section.batch_rows,
            longest=section.max_new_tokens,
            width=width,
        )
    return work


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of a run by part."""

    sampling: float
    updates: float
    evaluation: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.sampling + self.updates + self.evaluation


def run_seconds(
    config: Config, shape: Shape, lengths: Lengths, problems: Sequence[int], rates: Rates, *, start: int = 0, ranks: int = 1
) -> Seconds:
    """Seconds of the rounds after `start`, on `ranks` devices with these rates that share the work.

    `problems`: the size of each held-out set. The recipe's precisions must be settled.
    """
    sampled_in, trained_in = sampling_dtype(config), training_dtype(config)
    width, steps = 2 if sampled_in == "bfloat16" else 4, config.train.steps - start
    section = config.sampling

    def share(count: int) -> int:
        return math.ceil(count / ranks)

    round_ = sampling_work(
        shape,
        share(config.train.prompts_per_step),
        section.group_size,
        lengths,
        rows_at_once=section.batch_rows,
        longest=section.max_new_tokens,
        width=width,
    )
    evaluation = sum((evaluation_work(config, shape, share(count), lengths, width) for count in problems), Work())
    return Seconds(
        sampling=steps * seconds(round_, rates, sampled_in),
        updates=steps * seconds(update_work(config, shape, lengths), rates, trained_in) / ranks,
        evaluation=evaluations(config, start) * seconds(evaluation, rates, sampled_in),
    )
