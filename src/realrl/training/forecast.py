"""What a run will take, reported before it starts: time, memory and disk, and what to lower if that is too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import Config
from realrl.data import held_out_problems, load_problems, render_prompts
from realrl.errors import ConfigError, DataError
from realrl.models import load_tokenizer
from realrl.models.adapters import add_lora
from realrl.models.precision import settle, settle_for_gpus, training_dtype
from realrl.models.shape import Shape, meta_model
from realrl.models.tree import common_prefix
from realrl.rundir.metrics import read_rounds
from realrl.system.hardware import Rates, Speed, choose_device, measure_rates
from realrl.training.estimate import Lengths, run_seconds
from realrl.training.footprint import disk_parts, free_disk, free_memory, memory_parts
from realrl.types import Prompt

# Assumed before the first round: the length of responses as a share of sampling.max_new_tokens (.51 to .58 in the first rounds
# of our recipes), and the share of groups with both right and wrong responses (.41 over the whole quick start).
_RESPONSE_SHARE = 0.55
_ACTIVE_SHARE = 0.5
# A resumed run takes the lengths of this many rounds before it.
_RECENT = 10
# Prompts whose length is measured.
_LOOKED_AT = 256
# Characters of a token, assumed if there is no tokenizer.
_CHARACTERS = 3.5
# A longer run gets advice how to make it shorter.
_LONG_S = 30 * 60
# The estimate of memory may be wrong, but not by this factor.
_HOPELESS = 2.0
# The estimate of disk is not exact enough to refuse a run for less than this.
_SMALL_DISK = 16 << 20
# What to halve (True) or double to make a run shorter.
_LEVERS = {
    ("train", "steps"): True,
    ("sampling", "max_new_tokens"): True,
    ("eval", "problems"): True,
    ("eval", "samples"): True,
    ("eval", "every"): False,
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """The inputs of an estimate: a settled recipe, the model or its meta model, rates, lengths, the size of each held-out set,
    finished rounds, and devices that share the work."""

    config: Config
    model: PreTrainedModel
    rates: Rates
    lengths: Lengths
    held_out: Mapping[str, int]
    start: int = 0
    ranks: int = 1

    def time_lines(self) -> list[str]:
        """The time that the run still needs, and what to lower if it is long."""
        shape, config = Shape.of(self.model), self.config

        def left(changed: Config, lengths: Lengths, problems: Sequence[int]):
            return run_seconds(changed, shape, lengths, problems, self.rates, start=self.start, ranks=self.ranks)

        problems = list(self.held_out.values())
        time = left(config, self.lengths, problems)
        dtype = training_dtype(config)
        unit, name = _unit(time.total)

        def shown(seconds: float) -> str:
            return f"{seconds / unit:.{1 if time.total < 10 * unit else 0}f}"

        threads = f", {self.rates.threads} thread{'s' if self.rates.threads > 1 else ''}" if self.rates.device == "cpu" else ""
        where = f"on {self.ranks} such devices" if self.ranks > 1 else "on this machine"
        lines = [
            f"time: about {shown(time.total)} {name} {where} ({_rate(self.rates.of(dtype).forward)} in {dtype}{threads}): "
            f"sampling {shown(time.sampling)}, updates {shown(time.updates)}, evaluation {shown(time.evaluation)}; "
            f"if responses have {self.lengths.response:.0f} tokens"
        ]
        if time.total < _LONG_S:
            return lines
        savings = []
        for (section, key), halve in _LEVERS.items():
            value = getattr(getattr(config, section), key)
            changed = max(1, value // 2) if halve else 2 * value
            if changed == value or section == "eval" and not self.held_out:
                continue
            values = getattr(config, section).model_copy(update={key: changed})
            lengths = self.lengths
            if key == "max_new_tokens":
                lengths = replace(lengths, response=lengths.response / 2)
            fewer = [min(count, changed) for count in problems] if key == "problems" else problems
            saved = time.total - left(config.model_copy(update={section: values}), lengths, fewer).total
            savings.append((saved, f"{section}.{key} = {changed} saves {shown(saved)} {name}"))
        best = [text for saved, text in sorted(savings, reverse=True) if saved > 0.05 * time.total]
        return [*lines, f"shorter: {'; '.join(best)}"] if best else lines

    def space_lines(self, memory: int | None, disk: int | None) -> list[str]:
        """Needed and free memory and disk, with a warning if memory may be too small.

        `memory` and `disk` are the free bytes, None if not known. Raises ConfigError if memory is certainly too small.
        """
        most = max(self.held_out.values(), default=0)
        parts = memory_parts(self.config, self.model, self.lengths, most, device=self.rates.device, ranks=self.ranks)
        lines = [f"memory: {_amount(parts, memory)}", f"disk: {_amount(self._disk(), disk)}"]
        train, sampling = self.config.train, self.config.sampling
        remedy = (
            f"lower train.micro_batch_tokens (now {train.micro_batch_tokens}) or sampling.batch_rows (now "
            f"{sampling.batch_rows}), or see docs/performance.md, Memory"
        )
        if memory is not None and sum(parts.values()) > memory:
            if sum(parts.values()) > _HOPELESS * memory:
                raise ConfigError(f"the run does not fit into memory: {_amount(parts, memory)}; {remedy}")
            lines.append(f"WARNING: memory may not suffice; {remedy}")
        return lines

    def check_disk(self) -> None:
        """Raise ConfigError if the disk is too small for what the run will still write."""
        folder, disk = Path(self.config.run.dir), self._disk()
        # Files of an earlier start are replaced or continued.
        there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
        free = free_disk(folder) + there
        if sum(disk.values()) > max(free, _SMALL_DISK):
            raise ConfigError(
                f"run.dir = {str(folder)!r} needs {_amount(disk, free)}; lower checkpoint.keep (now "
                f"{self.config.checkpoint.keep}; one more is there while the newest is written), set log.tokens or "
                "log.rollouts = false, or choose run.dir on another disk"
            )

    def _disk(self) -> dict[str, float]:
        return disk_parts(self.config, self.model, self.lengths, list(self.held_out.values()))


def lengths_of(prompts: Sequence[Prompt], config: Config) -> Lengths:
    """Lengths of these prompts, and of responses as assumed before the first round."""
    sequences = [prompt.token_ids for prompt in prompts[:_LOOKED_AT]]
    return _assumed(config, sum(map(len, sequences)) / len(sequences), common_prefix(sequences))


def _assumed(config: Config, prompt: float, common: int = 0) -> Lengths:
    return Lengths(prompt, max(1.0, _RESPONSE_SHARE * config.sampling.max_new_tokens), common, _ACTIVE_SHARE)


def lengths_so_far(lengths: Lengths, metrics: Path) -> Lengths:
    """The lengths with the responses and the share of active groups that the run's last rounds had."""
    recent = read_rounds(metrics)[-_RECENT:]
    if not recent:
        return lengths
    means = {
        name: sum(record[name] for record in recent) / len(recent)
        for name in ("response/length_mean", "compute/rollouts_share")
    }
    return Lengths(lengths.prompt, means["response/length_mean"], lengths.common, means["compute/rollouts_share"])


def sketch_of(config: Config) -> tuple[PreTrainedModel, bool]:
    """The recipe's policy without weights, and whether its configuration was found (`models.shape.meta_model`)."""
    section = config.model
    model, found = meta_model(section.path, dtype=getattr(torch, section.dtype), trust_remote_code=section.trust_remote_code)
    if section.lora is not None:
        add_lora(model, section.lora, seed=config.run.seed)
    return model, found


def estimate(
    config: Config,
    *,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    flops: float | None = None,
    gpus: int = 1,
) -> list[str]:
    """The lines that preflight prints of a run's time, memory and disk, without its weights and without starting it.

    `flops`: FLOP/s of a plain product on each of `gpus` GPUs elsewhere; default: this machine, measured. `prompt_tokens` and
    `response_tokens` go before what the data and the recipe say. Raises ConfigError and DataError for what cannot be had.
    """
    device = choose_device(config.model.device)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if flops:
        rates = Rates("cuda", 1, Speed(flops, flops), Speed(flops, flops))
        config = settle_for_gpus(config)
        model, found = sketch_of(config)
    else:
        plain = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32", "lora": None})})
        shape = Shape.of(sketch_of(plain)[0])
        rates = measure_rates(device, shape.hidden, shape.intermediate)
        config = settle(config, rates)
        model, found = sketch_of(config)
    notes = [] if found else [f"assumed: the architecture of {config.model.path} as this version of realrl knows it"]
    lengths, held_out = _from_data(config, prompt_tokens, notes)
    if response_tokens:
        lengths = replace(lengths, response=response_tokens)
    outlook = Outlook(config, model, rates, lengths, held_out, ranks=gpus)
    free = (None, None) if flops else (free_memory(device), free_disk(Path(config.run.dir)))
    return [*notes, *outlook.time_lines(), *outlook.space_lines(*free)]


def _from_data(config: Config, prompt_tokens: int | None, notes: list[str]) -> tuple[Lengths, dict[str, int]]:
    """Lengths of the recipe's prompts and the sizes of its held-out sets, with what had to be assumed."""
    data, held_out = config.data, {}
    for name in data.eval:
        try:
            held_out[name] = len(held_out_problems(data, name, count=config.eval.problems).problems)
        except DataError:
            held_out[name] = config.eval.problems
            notes.append(f"assumed: {name}, which is not here, has eval.problems = {config.eval.problems} problems")
    if prompt_tokens:
        return _assumed(config, prompt_tokens), held_out
    try:
        problems = load_problems(data.train, columns=data.columns, task_options=data.task, keep=data.filter).problems
    except DataError as error:
        raise DataError(f"{error}; or say how long prompts are: --prompt-tokens 150") from error
    shown = [problems[index] for index in range(min(_LOOKED_AT, len(problems)))]
    try:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    except ConfigError:
        rest = data.system_prompt + data.prompt_prefix + data.prompt_suffix
        rest += "".join(data.prompt_prefix + one.problem + data.prompt_suffix + one.response for one in data.examples)
        characters = len(rest) + sum(len(problem.problem) for problem in shown) / len(shown)
        notes.append(f"assumed: {_CHARACTERS} characters a token, since the tokenizer of {config.model.path} is not here")
        return _assumed(config, characters / _CHARACTERS), held_out
    rendered = render_prompts(shown, tokenizer, data)
    if not rendered.prompts:
        raise DataError(f"data.train = {data.train!r}: no prompt fits data.max_prompt_tokens = {data.max_prompt_tokens}")
    return lengths_of(rendered.prompts, config), held_out


def _unit(seconds: float) -> tuple[float, str]:
    for size, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return size, name
    return 1.0, "s"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.0f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:.0f} GFLOP/s"


def _amount(parts: Mapping[str, float], free: int | None) -> str:
    total = sum(parts.values())
    of = "" if free is None else f" of {_size(free)} free"
    return f"about {_size(total)}{of}: " + ", ".join(f"{name} {_size(value)}" for name, value in parts.items())


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count > 100 << 20 else f"{count / 2**20:.0f} MiB"
