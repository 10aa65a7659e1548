"""Alarms of runs that learn nothing, fail or collapse: rules over the records of metrics.jsonl, and the file alarms.txt."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from realrl.config import AlarmKind
from realrl.rundir.metrics import is_accuracy
from realrl.system.files import write_whole

# One round may be odd; three in a row are not.
_PATIENCE = 3
# A bfloat16 sampler beside a float32 trainer differs by about 0.03 nats a token.
_SAMPLER_GAP = 0.1
# Rounds whose mean counts: a single round's reward moves by its few prompts alone.
_WINDOW = 10
# Learning never halves an accuracy that was there. Chance does on small sets, so the fall has to exceed the noise, too.
_FALL = 0.5
# In standard errors. A run has few evaluations and many windows: of 480 simulated runs of 1,000 rounds at a constant accuracy
# 11 rang at 5 errors, none at 6.
_HELD_OUT_ERRORS = 4.0
_REWARD_ERRORS = 6.0
# A policy that learns its task loses entropy, to 0.16 of its start in our recipes; one that repeats itself keeps next to none.
_ENTROPY_FALL = 0.1
# Above this reward little is left to be uncertain about: the quick start has 0.16 of its entropy at a reward of 0.9.
_SOLVED = 0.8
# Objectives that raise the entropy on purpose (dapo's upper clip) do so by less than this factor.
_ENTROPY_RISE = 4.0
# Reasoning that pays makes responses longer and the reward higher; longer without a higher reward is an explosion.
_LENGTH_RISE = 2.0
# A single gradient of 29 times the usual norm was clipped and did no harm (grpo, tiny study); several in a row are not chance.
_JUMP = 10.0
_NORMS = 20
_FEWEST_NORMS = 10
# Larger values count as not recorded; the square of this one is still a float.
_LARGEST = 1e100

_REMEDY = "lower optim.lr or take fewer optimizer steps a round, and begin again or at a checkpoint from before it"
HELD_OUT = "held-out accuracy collapsed"

# Those of `train.stop_on`, and those that stop no run.
Kind = (
    AlarmKind
    | Literal["no_signal", "truncated", "no_answer", "unknown_tokens", "no_gradient", "nonfinite", "sampler_gap", "grader"]
)
Level = Literal["ALARM", "WARNING"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """What rang."""

    kind: Kind
    text: str


class _Track:
    """One metric over the rounds: the means of its first, its newest and its highest window, and its newest values."""

    def __init__(self) -> None:
        self.start = self.last = self.best = math.nan
        self.recent: deque[float] = deque(maxlen=_NORMS)
        self._count = 0
        self._squares = 0.0

    def add(self, value: float | None) -> None:
        if value is None:
            return
        if self.recent:
            self._squares += (value - self.recent[-1]) ** 2
        self.recent.append(value)
        self._count += 1
        if self._count < _WINDOW:
            return
        self.last = mean(list(self.recent)[-_WINDOW:])
        if self._count == _WINDOW:
            self.start = self.best = self.last
        self.best = max(self.best, self.last)

    @property
    def error(self) -> float:
        """Standard error of a window's mean. Neighbouring rounds differ by √2 standard deviations, learning or not."""
        return math.sqrt(self._squares / (2 * (self._count - 1) * _WINDOW)) if self._count > 1 else math.nan


class _Past:
    """What the rules look at: the newest round, what the grader failed on in it, and metrics over the rounds."""

    def __init__(self) -> None:
        self.now: Mapping[str, float] = {}
        self.failures = ""
        self.reward, self.entropy, self.length, self.norm = _Track(), _Track(), _Track(), _Track()

    def add(self, record: Mapping[str, float], failures: str) -> None:
        self.now = record
        self.failures = failures
        self.reward.add(record.get("reward/mean"))
        # A round without a computed rollout has neither entropy nor gradient.
        if record.get("compute/rollouts_share", 1) > 0:
            self.entropy.add(record.get("policy/entropy"))
            self.norm.add(record.get("grad/norm"))
        self.length.add(record.get("response/length_mean"))

    def is_(self, name: str, value: float) -> bool:
        return self.now.get(name) == value

    def above(self, name: str, value: float) -> bool:
        return self.now.get(name, -math.inf) > value


@dataclass(frozen=True, slots=True)
class Rule:
    """An alarm that rings when `holds` has held for `patience` rounds in a row, with `once` only once in a run.

    Its text ends with `figures`.
    """

    kind: Kind
    text: str
    holds: Callable[[_Past], bool]
    patience: int = _PATIENCE
    once: bool = False
    figures: Callable[[_Past], str] = lambda past: ""


def _fell(value: float, best: float, errors: float) -> bool:
    return value < _FALL * best and best - value > errors


def _jumped(past: _Past) -> bool:
    before = list(past.norm.recent)[:-1]
    return len(before) >= _FEWEST_NORMS and past.above("grad/norm", _JUMP * median(before))


RULES = (
    Rule(
        "no_signal",
        "every group is all right or all wrong, so no rollout teaches anything: change the task's difficulty, the temperature "
        "or sampling.group_size",
        lambda past: past.is_("groups/mixed", 0),
    ),
    Rule(
        "truncated",
        "every response hits sampling.max_new_tokens: raise it or ask for shorter answers",
        lambda past: past.is_("response/truncated_share", 1),
    ),
    Rule(
        "no_answer",
        "no answer could be extracted from any response: check the prompt (data.system_prompt, data.prompt_suffix, "
        "data.examples) and reward.type",
        lambda past: past.is_("format/no_answer_share", 1),
    ),
    Rule(
        "unknown_tokens",
        "responses hold token ids that the tokenizer does not know (response/unknown_token_share), so that their text lacks "
        "them: take the tokenizer that belongs to the model; models have such ids for the size of their matrices",
        lambda past: past.above("response/unknown_token_share", 0),
        patience=1,
    ),
    Rule("no_gradient", "the gradient is exactly 0", lambda past: past.is_("grad/norm", 0)),
    Rule(
        "nonfinite",
        "the loss or the gradient is not finite; the update was skipped",
        lambda past: past.above("train/nonfinite", 0),
        patience=1,
    ),
    Rule(
        "sampler_gap",
        f"sampler and trainer differ by more than {_SAMPLER_GAP:g} nats a token (sampler/logprob_gap): the weights may not "
        "reach the sampler; compare sampling.dtype with model.dtype, or set sampling.importance_cap",
        lambda past: past.above("sampler/logprob_gap", _SAMPLER_GAP),
    ),
    Rule(
        "collapse",
        "the reward collapsed",
        lambda past: _fell(past.reward.last, past.reward.best, _REWARD_ERRORS * math.sqrt(2) * past.reward.error),
        patience=1,
        once=True,
        figures=lambda past: (
            f": {past.reward.last:.3f} in the last {_WINDOW} rounds, {past.reward.best:.3f} in the best; {_REMEDY}"
        ),
    ),
    Rule(
        "entropy",
        "the entropy collapsed",
        lambda past: past.entropy.last < _ENTROPY_FALL * past.entropy.start and past.reward.last < _SOLVED,
        once=True,
        figures=lambda past: (
            f": {past.entropy.last:.3g} nats in the last {_WINDOW} rounds, {past.entropy.start:.3g} in the "
            "first: the policy repeats itself; lower optim.lr or add objective.kl"
        ),
    ),
    Rule(
        "entropy",
        "the entropy exploded",
        lambda past: past.entropy.last > _ENTROPY_RISE * past.entropy.start,
        once=True,
        figures=lambda past: (
            f": {past.entropy.last:.3g} nats in the last {_WINDOW} rounds, {past.entropy.start:.3g} in the "
            "first: responses become random; lower optim.lr"
        ),
    ),
    Rule(
        "length",
        "responses grow without a higher reward",
        lambda past: past.length.last > _LENGTH_RISE * past.length.start and past.reward.last <= past.reward.start,
        once=True,
        figures=lambda past: (
            f": {past.length.last:.0f} tokens in the last {_WINDOW} rounds, {past.length.start:.0f} in the "
            "first; lower optim.lr or add objective.kl"
        ),
    ),
    Rule(
        "gradient",
        "the gradient norm jumped",
        _jumped,
        once=True,
        figures=lambda past: (
            f" to {past.norm.recent[-1]:.3g}, more than {_JUMP:g} times the median of the rounds before; lower "
            "optim.lr or optim.max_grad_norm"
        ),
    ),
    Rule(
        "grader",
        "the grader failed on",
        lambda past: past.above("reward/grader_errors", 0),
        patience=1,
        figures=lambda past: f" {past.failures}",
    ),
)


class Alarms:
    """Tells which alarms the records of metrics.jsonl ring; the records come in their order."""

    def __init__(self) -> None:
        self._past = _Past()
        # How often in a row each rule, or the fall of each held-out accuracy, has held.
        self._held: dict[Rule | str, int] = {}
        self._best: dict[str, tuple[float, float]] = {}

    def check(self, record: Mapping[str, Any], failures: str = "") -> list[Alarm]:
        """The alarms of one record, whose `kind` says whether it is a round's or an evaluation's.

        `failures` says how many responses the grader failed on, and the first reason. A value that is no finite number counts
        as not recorded.
        """
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and abs(value) < _LARGEST}
        if record["kind"] == "evaluation":
            return list(self._held_out(numbers))
        self._past.add(numbers, failures)
        return [
            Alarm(rule.kind, rule.text + rule.figures(self._past))
            for rule in RULES
            if self._rings(rule, rule.holds(self._past), rule.patience, once=rule.once)
        ]

    def _rings(self, name: Rule | str, holds: bool, patience: int, *, once: bool = False) -> bool:
        held = self._held.get(name, 0)
        # An alarm that rings once counts on when its condition ends, so that it does not come to its patience again.
        self._held[name] = held + 1 if holds or (once and held >= patience) else 0
        return self._held[name] == patience

    def _held_out(self, record: Mapping[str, float]) -> Iterator[Alarm]:
        for name, value in record.items():
            if not is_accuracy(name):
                continue
            error = record.get(name.removesuffix("accuracy") + "standard_error", 0.0)
            best, best_error = self._best.setdefault(name, (value, error))
            if value > best:
                self._best[name] = value, error
            if self._rings(name, _fell(value, best, _HELD_OUT_ERRORS * math.hypot(error, best_error)), 1, once=True):
                data_set, _, mode = name.removeprefix("eval/").removesuffix("/accuracy").rpartition("/")
                yield Alarm(
                    "collapse",
                    f"{HELD_OUT}: {data_set}, {mode}, is {value:.3f} ± {error:.3f} and was {best:.3f}; {_REMEDY}",
                )


def alarm_line(step: int, text: str, level: Level) -> str:
    """A line of alarms.txt, without its line break."""
    return f"step {step}: {level}: {text}"


def append_alarm(path: Path, step: int, text: str, level: Level) -> None:
    """Add a line to alarms.txt. Raises OSError."""
    with path.open("a") as file:
        file.write(alarm_line(step, text, level) + "\n")


def read_alarms(path: Path) -> list[tuple[int, str]]:
    """(step, text) of each line of alarms.txt that is an alarm; none without the file. A warning's text says that it is one."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    matches = (re.fullmatch(r"step (\d{1,15}): (?:ALARM: )?(.*)", line) for line in lines)
    return [(int(match[1]), match[2]) for match in matches if match]


def take_back_alarms(path: Path, resume_step: int) -> None:
    """Remove the alarms of the rounds after a checkpoint; the resumed run raises them again. Raises OSError."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        steps = [re.match(r"step (\d+): .*\n", line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step and int(step[1]) <= resume_step]
        write_whole(path, "".join(kept))
