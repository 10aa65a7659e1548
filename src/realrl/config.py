"""The recipe: a TOML file becomes one frozen, typed `Config`; unknown keys are errors that name the nearest known key."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from realrl.errors import ConfigError
from realrl.objectives import ObjectiveConfig, RealConfig, build_objective
from realrl.system.files import clash, file_name


class Section(BaseModel):
    """Base of every section: frozen, and no unknown key passes, nor a number that is none, as the text "nan" would be."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


PositiveInt = Annotated[int, Field(gt=0)]
# Of what is held in memory all at once; a slip of the keyboard is refused before it fills the machine.
Count = Annotated[int, Field(gt=0, le=2**20)]
_MAX_ROLLOUTS = 2**24
# Logits divided by less overflow, and what is then drawn means nothing.
MIN_TEMPERATURE = 0.01
AlarmKind = Literal["collapse", "entropy", "length", "gradient"]
# The objective of a recipe that names none.
_OBJECTIVE = RealConfig().type
# Tables within tables of a file, and the largest whole number: past these a file is no recipe.
_MAX_DEPTH = 16
_MAX_INT = 2**62
# Bytes of one part of a path; file systems take 255, and some parts are written with a suffix.
_MAX_NAME = 200
# Characters of a wrong value that an error shows.
_MAX_SHOWN = 200


class RunSection(Section):
    dir: str = "runs/run"
    seed: int = 0
    threads: int = Field(default=0, ge=0, le=4096, description="CPU threads of torch; 0 keeps torch's own choice")

    @field_validator("dir")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if (
            not value.strip()
            or not value.isprintable()
            or any(len(os.fsencode(part)) > _MAX_NAME for part in Path(value).parts)
        ):
            raise ValueError(
                f"no folder can be named so: give a path without control characters, each part of at most {_MAX_NAME} bytes"
            )
        return value


class LoraSection(Section):
    """Low-rank adapters beside frozen weights: W + (alpha / rank) B A."""

    rank: int = Field(default=16, gt=0, le=8192)
    alpha: PositiveInt = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = Field(
        default="all-linear", description="all-linear (every linear layer but the head), a regular expression, or names"
    )

    @model_validator(mode="after")
    def _no_dropout(self) -> LoraSection:
        if self.dropout:
            raise ValueError(
                f"dropout = {self.dropout} would make two passes of the same weights differ, so that the log-ratio of a policy "
                "that has not moved is not 0; set dropout = 0.0 (a lower rank or lr also regularises)"
            )
        return self


class ModelSection(Section):
    path: str
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="auto: bfloat16 where it is faster and loses no update (under LoRA, or with optim.master_weights)",
    )
    autocast: Literal["auto", "none", "bfloat16"] = Field(
        default="none", description="products of forward and backward in bfloat16; auto: where that is faster"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = Field(
        default="auto", description="transformers' attn_implementation; auto is transformers' own choice"
    )
    compile: bool = False
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    lora: LoraSection | None = Field(default=None, description="train adapters only; absent: every weight")
    quantize: Literal["none", "4bit"] = Field(default="none", description="4bit: the frozen weights under LoRA (QLoRA)")
    offload_reference: bool = Field(default=False, description="the reference model rests in main memory between passes")

    @model_validator(mode="after")
    def _quantised_weights_are_frozen(self) -> ModelSection:
        if self.quantize != "none" and self.lora is None:
            raise ValueError(
                f"quantize = {self.quantize!r} freezes the weights, so adapters have to learn: add lora = {{ rank = 16 }}, or "
                "set quantize = 'none'"
            )
        return self


class Example(Section):
    """One worked example, shown to the model as a former turn of the chat."""

    problem: str
    response: str


class KeepRange(Section):
    """Numbers from `min` to `max`, both included; None is no bound."""

    min: float | None = None
    max: float | None = None


Keep = KeepRange | tuple[str | int | float, ...]


class DataSection(Section):
    train: str
    eval: tuple[str, ...] = ()
    columns: dict[str, str] = Field(default={}, description="problem, answer, id → the data's own names")
    filter: dict[str, Keep] = Field(default={}, description="training rows: column → values, or { min, max }")
    deduplicate: bool = Field(default=False, description="one row of equal training problems, none where golds differ")
    decontaminate: tuple[str, ...] = Field(default=(), description="sets whose problems must not occur in training")
    task: dict[str, Any] = Field(default={}, description="options of a generated task, such as its level")
    system_prompt: str = ""
    prompt_prefix: str = ""
    prompt_suffix: str = ""
    examples: tuple[Example, ...] = ()
    chat_template: Literal["auto", "plain"] = "auto"
    max_prompt_tokens: PositiveInt = 1024
    strict: bool = False

    @field_validator("columns")
    @classmethod
    def _are_columns_of_ours(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := columns.keys() - {"problem", "answer", "id"}:
            raise ValueError(f"{min(unknown)!r} is no column of ours; they are problem, answer and id")
        return columns

    @field_validator("eval")
    @classmethod
    def _have_files_of_their_own(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if pair := clash(names):
            raise ValueError(f"{pair[0]!r} and {pair[1]!r} have one file name, {file_name(pair[0])}; rename one")
        return names


class RewardSection(Section):
    type: str = "math"
    workers: int = Field(default=2, gt=0, le=1024)
    timeout_s: float = Field(default=5.0, gt=0, le=3600, description="seconds for one answer")
    memory_mib: PositiveInt = Field(default=1024, description="address space of one grading worker; on macOS its main memory")
    require_boxed: bool = False
    require_think_close: bool = False
    bare_answers: bool = Field(default=True, description="a formula that ends the last line counts as the answer")
    format_weight: float = Field(default=0.0, ge=0, lt=1, description="share of the reward that a boxed answer earns")
    threshold: float | None = Field(default=None, gt=0, le=1, description="scores from here on are reward 1, others 0")


class SamplingSection(Section):
    engine: str = Field(default="hf", description='hf, vllm, or a sampler of your own as "module:Class"')
    group_size: Count = 8
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 keeps the whole vocabulary")
    max_new_tokens: Count = 256
    dtype: Literal["auto", "same", "bfloat16"] = Field(
        default="same", description="same: the dtype of the weights in training; auto: bfloat16 where it is faster"
    )
    batch_rows: PositiveInt = Field(default=256, description="rows sampled at once at most")
    gpu_memory: float = Field(default=0.4, gt=0, le=1, description="vllm: share of the GPU's memory for weights and KV cache")
    sleep: bool = Field(default=False, description="vllm: give that memory back while the policy is updated")
    steps_ahead: Literal[0, 1] = Field(
        default=0, description="1: the next step is sampled while the policy is updated, from weights one update old"
    )
    importance_cap: float = Field(
        default=0.0,
        ge=0,
        description="weight each token's gradient with min(trainer / sampler probability, cap); 0: no weights",
    )


class TrainSection(Section):
    steps: PositiveInt = 100
    prompts_per_step: Count = 16
    mini_batch_prompts: Count = 16
    micro_batch_tokens: PositiveInt = 32768
    gradient_route: Literal["auto", "direct", "two_pass"] = "auto"
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        default="auto", description="how a micro-batch lies in memory; the result is the same (docs/performance.md)"
    )
    parallel: Literal["ddp", "fsdp2"] = Field(
        default="ddp", description="under torchrun: every rank holds the whole model, or a shard of it"
    )
    shuffle_rollouts: bool = False
    max_nonfinite_steps: PositiveInt = 5
    stop_on: tuple[AlarmKind, ...] = Field(default=(), description="kinds of alarms that end the run")


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSection(Section):
    type: Literal["adamw", "adamw_8bit"] = Field(default="adamw", description="adamw_8bit: moments in 8 bits (bitsandbytes)")
    master_weights: bool = Field(default=False, description="a float32 copy of bfloat16 weights takes the updates")
    lr: float = Field(default=2e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)

    def factor(self, step: int, steps: int) -> float:
        """What multiplies `lr` in sampling round `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        if self.schedule == "linear":
            return 1 - progress
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1.0


class EvalSection(Section):
    every: int = Field(default=0, ge=0, description="0: before and after training only")
    samples: Count = 1
    top_p: float | None = Field(default=None, gt=0, le=1, description="sampling.top_p where none is given")
    problems: PositiveInt = Field(default=128, description="held-out problems of each set at most")
    greedy: bool = True
    at_start: bool = True


class CheckpointSection(Section):
    every: int = Field(default=50, ge=0, description="0: only the last step")
    keep: PositiveInt = 3


class LogSection(Section):
    rich: bool = True
    wandb: bool = False
    trackio: bool = False
    tensorboard: bool = False
    rollouts: bool = True
    tokens: bool = Field(default=False, description="rollouts also hold token ids and log-ratios, 6 bytes a token")
    figure: bool = True
    examples: int = Field(default=3, ge=0, description="answers shown before and after training")


class Config(Section):
    """A whole recipe. Cross-section rules are checked here; what needs the model or the data is checked by preflight."""

    run: RunSection = RunSection()
    model: ModelSection
    data: DataSection
    reward: RewardSection = RewardSection()
    sampling: SamplingSection = SamplingSection()
    objective: ObjectiveConfig = RealConfig()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> Config:
        prompts, mini, size = self.train.prompts_per_step, self.train.mini_batch_prompts, self.sampling.group_size
        if prompts * size > _MAX_ROLLOUTS:
            raise ValueError(
                f"train.prompts_per_step = {prompts} × sampling.group_size = {size} are more rollouts than the {_MAX_ROLLOUTS} "
                "that a step may have; lower one"
            )
        if prompts % mini:
            raise ValueError(
                f"train.mini_batch_prompts = {mini} does not divide train.prompts_per_step = {prompts}; "
                f"choose one of {[d for d in range(1, prompts + 1) if prompts % d == 0]}"
            )
        return self

    @model_validator(mode="after")
    def _sharded(self) -> Config:
        unfit = {
            "model.lora": self.model.lora is not None,
            "model.offload_reference": self.model.offload_reference,
            "optim.type = 'adamw_8bit'": self.optim.type == "adamw_8bit",
        }
        for name, wanted in unfit.items():
            if wanted and self.train.parallel == "fsdp2":
                raise ValueError(
                    f"train.parallel = 'fsdp2' does not go with {name}; use train.parallel = 'ddp', or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _labels(self) -> Config:
        if build_objective(self.objective).needs_labels and self.reward.format_weight and self.reward.threshold is None:
            raise ValueError(
                f"reward.format_weight = {self.reward.format_weight} makes rewards between 0 and 1, and objective.type = "
                f"{self.objective.type!r} needs labels 0 or 1; set reward.threshold, or choose an advantage-based objective "
                "(grpo, dapo)"
            )
        return self

    @model_validator(mode="after")
    def _route(self) -> Config:
        if self.train.gradient_route == "direct" and not build_objective(self.objective).sums_over_groups:
            raise ValueError(
                f"train.gradient_route = 'direct' is not exact for objective.type = {self.objective.type!r}, whose trust "
                "region couples all groups of a mini-batch; leave it out"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps per sampling round."""
        return self.train.prompts_per_step // self.train.mini_batch_prompts


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Read a recipe and apply dotted overrides (`{"optim.lr": "1e-6"}`; values are TOML, or else plain text).

    Another `objective.type` than the recipe's starts from that objective's defaults: the recipe's `[objective]` is left out.

    Raises ConfigError for a missing file, broken TOML, an unknown key (naming the nearest), or a value out of range.
    """
    path = Path(path)
    try:
        found = path.is_file()
    except OSError as error:
        raise ConfigError(f"no recipe can be at {str(path)[:80]}…: {error.strerror}") from error
    if not found:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no recipe at {path}{hint}")
    document = read_toml(path)
    overrides, table = overrides or {}, document.get("objective")
    if isinstance(table, dict) and overrides.get("objective.type", "").strip("'\"") not in ("", table.get("type", _OBJECTIVE)):
        document["objective"] = {}
    for key, text in overrides.items():
        _set_dotted(document, key, text)
    return parse_config(document, source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError for one that is broken, too deep, or holds numbers that no setting can be."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    # Broken TOML, other bytes than UTF-8, a number of thousands of digits; arrays in arrays without end.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    _check_values(document, str(path))
    return document


def _check_values(document: dict[str, Any], source: str) -> None:
    nodes: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        nodes = [value for node in nodes for value in (node.values() if isinstance(node, dict) else node)]
        for value in nodes:
            if isinstance(value, str) and not _is_text(value):
                raise ConfigError(f"{source}: {value[:80]!r} is no text: it holds bytes that are not UTF-8")
            if isinstance(value, int | float) and not abs(value) < _MAX_INT:
                raise ConfigError(f"{source}: {str(value)[:20]} is no value of a setting; numbers are finite, and below 2^62")
        nodes = [value for value in nodes if isinstance(value, dict | list)]
    if nodes:
        raise ConfigError(f"{source}: tables or lists are nested deeper than {_MAX_DEPTH}; a recipe has three levels")


def _is_text(value: str) -> bool:
    """Whether a file can hold it: a command line may give bytes of another encoding, as halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_config(document: dict[str, Any], source: str = "config") -> Config:
    """Validate a recipe given as nested dicts; raises ConfigError that lists every fault, one a line."""
    _check_values(document, source)
    objective = document.get("objective")
    if isinstance(objective, dict) and "type" not in objective:
        document = document | {"objective": {"type": _OBJECTIVE, **objective}}
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(_describe(fault, document) for fault in error.errors())
        raise ConfigError(f"{source}: {faults}") from error


def dump_config(config: Config) -> str:
    """The resolved recipe as TOML; reading it back gives an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim": {"lr": 1}}` as `{"optim.lr": 1}`; an empty table is left out."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _set_dotted(document: dict[str, Any], dotted: str, text: str) -> None:
    *sections, key = dotted.split(".")
    node = document
    for name in sections:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--{dotted}: {name} is a value, not a section")
    try:
        node[key] = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        node[key] = text


def _describe(fault: Any, document: dict[str, Any]) -> str:
    """One fault of pydantic's list as a sentence; an unknown key names the nearest known one."""
    # pydantic puts the tag of a discriminated union into the location; users never wrote it.
    location = [str(part) for part in fault["loc"]]
    if location and location[0] == "objective" and len(location) > 1:
        del location[1]
    # Nor the kinds of value that a filter's may be.
    if location[:2] == ["data", "filter"]:
        del location[3:]
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = sorted(_known_keys(location[:-1], document))
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {dotted}; {hint}"
    if fault["type"] == "missing":
        return f"missing key {dotted}"
    if fault["type"] == "union_tag_invalid":
        expected = [name.strip(" '") for name in fault["ctx"]["expected_tags"].split(",")]
        near = difflib.get_close_matches(str(fault["ctx"]["tag"]), expected, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(expected)}"
        return f"unknown objective.type {fault['ctx']['tag']!r}; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    shown = repr(fault["input"])
    shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
    if fault["type"] == "tuple_type":
        message = f"a list is needed, such as [{shown}]"
    elif fault["type"] in ("model_type", "model_attributes_type"):
        message = "a table is needed"
    return f"{dotted} = {shown}: {message}" if dotted else message


def _known_keys(location: list[str], document: dict[str, Any]) -> list[str]:
    """Field names of the section at `location`, through nested sections and the objective's variants."""
    model: type[BaseModel] = Config
    for depth, name in enumerate(location):
        if depth == 0 and name == "objective":
            model = type(build_objective({"type": document["objective"]["type"]}).config)
            continue
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        # An optional section is a union with None.
        sections = [a for a in (get_args(annotation) or (annotation,)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
