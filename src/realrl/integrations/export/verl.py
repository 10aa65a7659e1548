"""`realrl export verl`: a recipe as the command of verl's own launcher with our trainer, and its data as Parquet."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realrl.config import Config
from realrl.data import chat_messages
from realrl.integrations.export.common import (
    Export,
    Machines,
    bullets,
    given,
    left_out_notes,
    model_source,
    objective_table,
    refuse,
    refused_keys,
)
from realrl.integrations.problems import held_out_problems, problems_to_train
from realrl.models import load_tokenizer
from realrl.models.precision import settle_for_gpus
from realrl.objectives import build_objective
from realrl.system.files import file_name
from realrl.types import Problem

logger = logging.getLogger(__name__)

# Keys of a recipe → verl's; `section.*` is every key of a section.
MAPPED = {
    "run.dir": "trainer.default_local_dir, trainer.experiment_name",
    "run.seed": "data.seed, actor.data_loader_seed, rollout.seed",
    "model.path": "model.path (a built-in model as the path of its folder)",
    "model.dtype": "actor.fsdp_config.model_dtype, actor.fsdp_config.mixed_precision, rollout.dtype",
    "model.autocast": "actor.fsdp_config.mixed_precision",
    "model.device": "trainer.device",
    "model.attention": "model.override_config.attn_implementation",
    "model.gradient_checkpointing": "model.enable_gradient_checkpointing",
    "model.trust_remote_code": "model.trust_remote_code, data.trust_remote_code",
    "model.lora": "model.lora_rank, model.lora_alpha, model.target_modules",
    "model.offload_reference": "ref.fsdp_config.param_offload",
    "data.*": "data.train_files, data.val_files, data.max_prompt_length, model.custom_chat_template",
    "reward.*": "reward.custom_reward_function.reward_kwargs (workers: of each of verl's reward.num_workers processes)",
    "sampling.engine": "rollout.name (always vllm)",
    "sampling.group_size": "rollout.n",
    "sampling.temperature": "rollout.temperature, rollout.val_kwargs.temperature",
    "sampling.top_p": "rollout.top_p",
    "sampling.top_k": "rollout.top_k, rollout.val_kwargs.top_k",
    "sampling.max_new_tokens": "data.max_response_length",
    "sampling.dtype": "rollout.dtype",
    "sampling.gpu_memory": "rollout.gpu_memory_utilization",
    "sampling.sleep": "rollout.free_cache_engine",
    "sampling.steps_ahead": "trainer.v1.trainer_mode (real_sync, real_colocate_async)",
    "objective.*": "algorithm.real, actor.use_kl_loss (loads the reference model)",
    "train.steps": "trainer.total_training_steps",
    "train.prompts_per_step": "data.train_batch_size",
    "train.mini_batch_prompts": "actor.ppo_mini_batch_size",
    "train.micro_batch_tokens": "actor.ppo_max_token_len_per_gpu",
    "optim.master_weights": "actor.fsdp_config.model_dtype",
    "optim.lr": "actor.optim.lr",
    "optim.weight_decay": "actor.optim.weight_decay",
    "optim.betas": "actor.optim.betas",
    "optim.eps": "actor.optim.override_optimizer_config.eps",
    "optim.schedule": "actor.optim.lr_scheduler_type",
    "optim.warmup_steps": "actor.optim.lr_warmup_steps",
    "optim.max_grad_norm": "actor.optim.clip_grad",
    "eval.every": "trainer.test_freq",
    "eval.samples": "rollout.val_kwargs.n",
    "eval.top_p": "rollout.val_kwargs.top_p",
    "eval.problems": "rows of data.val_files",
    "eval.at_start": "trainer.val_before_train",
    "checkpoint.every": "trainer.save_freq",
    "checkpoint.keep": "trainer.max_actor_ckpt_to_keep",
    "log.wandb": "trainer.logger",
    "log.trackio": "trainer.logger",
    "log.tensorboard": "trainer.logger",
    "log.rollouts": "trainer.rollout_data_dir",
    "log.examples": "trainer.log_val_generations",
}
# Keys without a counterpart: named in the notes where a recipe sets them.
LEFT_OUT = {
    "run.threads": "set OMP_NUM_THREADS when you start Ray",
    "model.compile": "verl compiles parts of its own",
    "sampling.batch_rows": "the rollout engine schedules its rows itself",
    "train.gradient_route": "the trainer's weights are exact for any cut of the rows",
    "train.layout": "verl packs sequences",
    "train.parallel": "verl always shards (FSDP2); the result is the same",
    "train.shuffle_rollouts": "verl balances the rows of a mini-batch over its ranks; the gradient is the same",
    "train.max_nonfinite_steps": "verl skips updates that are not finite and does not stop",
    "train.stop_on": "verl has no alarms",
    "eval.greedy": "verl evaluates with samples",
    "log.rich": "verl prints to the console",
    "log.figure": "verl draws none",
    "log.tokens": "verl saves texts alone",
}
# Keys that must be at their default: what to set instead.
REFUSED = {
    "model.quantize": "verl does not train under 4-bit weights; set model.quantize = 'none'",
    "optim.type": "8-bit moments do not go with sharded weights; set optim.type = 'adamw'",
    "sampling.importance_cap": "realrl's trainers in verl weigh no tokens; set sampling.importance_cap = 0",
}
# verl's own number of processes that ask for rollouts.
_AGENTS = 8


class _Beside(str):
    """The path of a file beside the script, whose folder is `$HERE` there."""


# `plain_text` as a chat template.
_PLAIN_TEMPLATE = (
    '{{ bos_token }}{% for message in messages %}{{ message["content"] }}'
    '{% if not loop.last %}{{ "\\n\\n" }}{% endif %}{% endfor %}'
)
_BARE = re.compile(r"[A-Za-z_/][\w./:-]*")
_WORDS = ("true", "false", "null", "nan", "inf")
_SCRIPT = """#!/usr/bin/env bash
# {title}, made by
#
#     {made_by}
#
# which with -o FOLDER writes the data, too, that this script reads from beside itself. Start it:
#
#     {command}
#
# Further options of verl may follow, and win: {command} trainer.val_only=True
#
{arithmetic}
#
# What verl does otherwise:
{notes}
set -euo pipefail
HERE=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)

exec python -m verl.trainer.main_ppo \\
{options} \\
    "$@"
"""


def export_verl(config: Config, machines: Machines, *, made_by: str = "realrl export verl") -> Export:
    """The command as a script, its data, and what verl does otherwise. Raises ConfigError for what cannot be carried over."""
    config = settle_for_gpus(config)
    refuse("verl", _faults(config))
    model, notes = model_source(config), _notes(config)
    sections = verl_options(config, machines, model)
    refuse("verl", _interpolations(sections))
    lines = []
    for comment, options in sections.items():
        lines.append(f"    `# {comment}` \\")
        lines += [f"    {_word(key, value)} \\" for key, value in options.items()]
    files: dict[str, Callable[[Path], None]] = {"train.parquet": partial(_write_training, config)}
    files |= {_eval_file(name): partial(_write_held_out, config, name) for name in config.data.eval}
    command = "bash train.sh"
    script = _SCRIPT.format(
        title=_in_comment(f"{config.objective.type.upper()} on {config.model.path} with verl"),
        made_by=_in_comment(made_by),
        command=command,
        arithmetic=bullets([_arithmetic(config, machines)], "# ").replace("# - ", "# ").replace("\n#   ", "\n# "),
        notes=bullets(notes, "# "),
        options="\n".join(lines).removesuffix(" \\"),
    )
    return Export("train.sh", script, command, notes, files)


def verl_options(config: Config, machines: Machines, model: str) -> dict[str, dict[str, Any]]:
    """verl's options section by section; a leading + is a key that verl's own configuration does not have."""
    sampling, train = config.sampling, config.train
    longest = config.data.max_prompt_tokens + sampling.max_new_tokens
    actor = "actor_rollout_ref.actor"
    return {
        "[objective]": {
            "trainer.v1.trainer_mode": "real_colocate_async" if sampling.steps_ahead else "real_sync",
            "algorithm.adv_estimator": "real",
            f"{actor}.policy_loss.loss_mode": "real",
            **_nested("+algorithm.real", objective_table(config)),
            # Whether there is a reference model; the penalty itself is part of the objective.
            f"{actor}.use_kl_loss": build_objective(config.objective).needs_ref,
            f"{actor}.kl_loss_coef": 0.0,
        },
        "[model]": _model(config, model),
        "[data]": {
            "data.train_files": _Beside("$HERE/train.parquet"),
            "data.val_files": [_Beside(f"$HERE/{_eval_file(name)}") for name in config.data.eval]
            or _Beside("$HERE/train.parquet"),
            "data.train_batch_size": train.prompts_per_step,
            "data.max_prompt_length": config.data.max_prompt_tokens,
            "data.max_response_length": sampling.max_new_tokens,
            "data.filter_overlong_prompts": True,
            "data.seed": config.run.seed,
        },
        "[reward]": {
            "reward.custom_reward_function.path": "pkg://realrl.integrations.verl.reward",
            "reward.custom_reward_function.name": "compute_score",
            **_nested("+reward.custom_reward_function.reward_kwargs", {"type": config.reward.type, **given(config.reward)}),
        },
        "[sampling]": _rollout(config),
        "[train]": {
            f"{actor}.strategy": "fsdp2",
            f"{actor}.ppo_mini_batch_size": train.mini_batch_prompts,
            f"{actor}.use_dynamic_bsz": True,
            f"{actor}.ppo_max_token_len_per_gpu": max(train.micro_batch_tokens, longest),
            f"{actor}.shuffle": True,
            f"{actor}.data_loader_seed": config.run.seed,
        },
        "[optim]": _optim(config),
        "[run], [eval], [checkpoint], [log]": _trainer(config, machines),
    }


def _faults(config: Config) -> list[str]:
    faults = refused_keys(config, REFUSED)
    if config.sampling.group_size < 2:
        faults.append(f"sampling.group_size = {config.sampling.group_size}: verl needs groups of at least 2; set 8")
    if config.optim.schedule == "linear":
        faults.append("optim.schedule = 'linear': verl's FSDP has constant and cosine; set optim.schedule = 'cosine'")
    if config.model.attention == "flex_attention":
        faults.append(
            "model.attention = 'flex_attention': verl packs sequences for flash_attention_2; set model.attention = 'auto'"
        )
    return faults


def _notes(config: Config) -> list[str]:
    """What verl does otherwise."""
    sampling, optim = config.sampling, config.optim
    notes = left_out_notes(config, LEFT_OUT)
    notes.append(f"run.seed = {config.run.seed}: the order of the problems and the draws are verl's, not our trainer's")
    if sampling.engine != "vllm":
        notes.append(f"sampling.engine = {sampling.engine!r}: verl samples with a server; here vLLM (or rollout.name=sglang)")
    if sampling.steps_ahead:
        notes.append("sampling.steps_ahead = 1: a rollout may go on over several updates of the weights, ours has one")
    if optim.warmup_steps:
        notes.append("optim.warmup_steps: verl's first optimizer step has the learning rate 0, ours lr / (warmup_steps + 1)")
    if optim.warmup_steps or optim.schedule != "constant":
        notes.append("optim.schedule: verl changes the learning rate at every optimizer step, ours at every sampling round")
    if config.data.eval and config.eval.greedy:
        notes.append("eval.greedy: verl evaluates with samples, not greedily")
    if config.train.micro_batch_tokens < config.data.max_prompt_tokens + sampling.max_new_tokens:
        notes.append("train.micro_batch_tokens: raised to the longest sequence, which verl does not cut")
    if _plain(config) is None:
        notes.append("data.chat_template = 'auto': the model's own template; if it has none, --data.chat_template plain")
    return notes


def _arithmetic(config: Config, machines: Machines) -> str:
    train, size = config.train, config.sampling.group_size
    updates = config.updates_per_step
    return (
        f"{machines.nodes} × {machines.gpus_per_node} GPUs; {train.prompts_per_step} prompts × {size} rollouts a round; "
        f"{updates} optimizer step{'s' if updates > 1 else ''} of {train.mini_batch_prompts} groups; {train.steps:,} rounds = "
        f"{train.steps * updates:,} optimizer steps."
    )


def _model(config: Config, model: str) -> dict[str, Any]:
    section, prefix = config.model, "actor_rollout_ref.model"
    actor, ref = (f"actor_rollout_ref.{role}.fsdp_config" for role in ("actor", "ref"))
    options: dict[str, Any] = {
        f"{prefix}.path": model,
        f"{prefix}.enable_gradient_checkpointing": section.gradient_checkpointing,
        # FSDP casts the weights for each pass, so that float32 ones are the master weights; adapters always are float32.
        f"{actor}.model_dtype": "fp32" if _float32_weights(config) else "bf16",
        **_pass_dtype(config, actor),
    }
    if build_objective(config.objective).needs_ref:
        options |= {
            f"{ref}.model_dtype": "bf16" if section.dtype == "bfloat16" else "fp32",
            f"{ref}.param_offload": section.offload_reference,
            **_pass_dtype(config, ref),
        }
    if section.attention != "auto":
        options[f"+{prefix}.override_config.attn_implementation"] = section.attention
        # Sequences are packed for flash attention alone.
        options[f"{prefix}.use_remove_padding"] = section.attention == "flash_attention_2"
    if section.trust_remote_code:
        options |= {f"{prefix}.trust_remote_code": True, "data.trust_remote_code": True}
    if section.lora:
        targets = section.lora.targets
        options |= {
            f"{prefix}.lora_rank": section.lora.rank,
            f"{prefix}.lora_alpha": section.lora.alpha,
            f"{prefix}.target_modules": targets if isinstance(targets, str) else list(targets),
        }
    if _plain(config):
        options[f"{prefix}.custom_chat_template"] = _PLAIN_TEMPLATE
    return options


def _float32_weights(config: Config) -> bool:
    return config.model.dtype == "float32" or config.optim.master_weights or config.model.lora is not None


def _pass_dtype(config: Config, fsdp: str) -> dict[str, Any]:
    """verl's FSDP computes in bfloat16 unless `mixed_precision` is given; it does not read `fsdp_config.dtype`."""
    if "bfloat16" in (config.model.dtype, config.model.autocast):
        return {}
    return {f"+{fsdp}.mixed_precision.param_dtype": "fp32"}


def _plain(config: Config) -> bool | None:
    """Whether prompts go without the model's chat template; None for a model of the hub, which is not looked at here."""
    if config.data.chat_template == "plain":
        return True
    source = model_source(config)
    if not Path(source).is_dir():
        return None
    return not load_tokenizer(source, trust_remote_code=config.model.trust_remote_code).chat_template


def _rollout(config: Config) -> dict[str, Any]:
    sampling, prefix = config.sampling, "actor_rollout_ref.rollout"
    # What a recipe for another sampler says of memory is not about vLLM.
    own = {f"{prefix}.gpu_memory_utilization": sampling.gpu_memory, f"{prefix}.free_cache_engine": sampling.sleep}
    sampled = config.model.dtype if sampling.dtype == "same" else sampling.dtype
    return {
        f"{prefix}.name": "vllm",
        f"{prefix}.n": sampling.group_size,
        f"{prefix}.temperature": sampling.temperature,
        f"{prefix}.top_p": sampling.top_p,
        f"{prefix}.top_k": sampling.top_k or -1,
        f"{prefix}.dtype": sampled,
        **(own if sampling.engine == "vllm" else {}),
        f"{prefix}.tensor_model_parallel_size": 1,
        f"{prefix}.seed": config.run.seed,
        f"{prefix}.agent.num_workers": min(_AGENTS, config.train.prompts_per_step),
        # vLLM is given adapters alone, so it has to load the weights beneath them itself.
        **({f"{prefix}.load_format": "safetensors"} if config.model.lora else {}),
        f"{prefix}.val_kwargs.n": config.eval.samples,
        f"{prefix}.val_kwargs.do_sample": True,
        f"{prefix}.val_kwargs.temperature": sampling.temperature,
        f"{prefix}.val_kwargs.top_p": config.eval.top_p or sampling.top_p,
        f"{prefix}.val_kwargs.top_k": sampling.top_k or -1,
    }


def _optim(config: Config) -> dict[str, Any]:
    """Steps count sampling rounds; our trainer in verl multiplies them by the optimizer steps of a round."""
    optim, prefix = config.optim, "actor_rollout_ref.actor.optim"
    return {
        f"{prefix}.lr": optim.lr,
        f"{prefix}.weight_decay": optim.weight_decay,
        f"{prefix}.betas": list(optim.betas),
        f"+{prefix}.override_optimizer_config.eps": optim.eps,
        f"{prefix}.lr_scheduler_type": optim.schedule,
        f"{prefix}.lr_warmup_steps": optim.warmup_steps,
        f"{prefix}.clip_grad": optim.max_grad_norm,
    }


def _trainer(config: Config, machines: Machines) -> dict[str, Any]:
    run, steps = Path(config.run.dir), config.train.steps
    loggers = ["console", *(name for name in ("wandb", "trackio", "tensorboard") if getattr(config.log, name))]
    evaluates = bool(config.data.eval)
    return {
        "trainer.n_gpus_per_node": machines.gpus_per_node,
        "trainer.nnodes": machines.nodes,
        **({"trainer.device": config.model.device} if config.model.device != "auto" else {}),
        "trainer.total_training_steps": steps,
        # An epoch has one step at least; the steps above end the run.
        "trainer.total_epochs": steps,
        "trainer.default_local_dir": str(run / "checkpoints"),
        "trainer.project_name": "realrl",
        "trainer.experiment_name": run.name,
        "trainer.logger": loggers,
        "trainer.val_before_train": evaluates and config.eval.at_start,
        # verl evaluates and saves at the last step, too.
        "trainer.test_freq": (config.eval.every or steps) if evaluates else -1,
        "trainer.log_val_generations": config.log.examples,
        "trainer.save_freq": config.checkpoint.every or steps,
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep,
        **({"trainer.rollout_data_dir": str(run / "rollouts")} if config.log.rollouts else {}),
    }


def _nested(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """One option for each leaf of a table."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _nested(f"{prefix}.{key}", value) if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return flat


def _word(key: str, value: Any) -> str:
    """One argument for bash, which reads `$HERE` in the names of our own files and nothing else."""
    text = f"{key}={_hydra(value)}"
    if any(isinstance(part, _Beside) for part in _parts(value)):
        return '"' + text.replace('"', '\\"') + '"'
    return shlex.quote(text)


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _interpolations(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A fault for each text in which verl's configuration would put something else, say a variable of the environment."""
    return [
        f"{key} would be {value!r}, and verl's configuration replaces what it finds in ${{…}}; choose another name"
        for options in sections.values()
        for key, value in options.items()
        if any(isinstance(part, str) and "${" in part for part in _parts(value))
    ]


def _in_comment(text: str) -> str:
    return text.replace("\n", "\\n")


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides; a text is quoted where it could be taken for anything else."""
    if isinstance(value, list):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if not isinstance(value, str) or (_BARE.fullmatch(value) and value.lower() not in _WORDS):
        return str(value)
    # Backslashes count double before a quote and at the end, and are themselves elsewhere.
    doubled = re.sub(r"\\+(?='|$)", lambda found: found[0] * 2, value)
    return "'" + doubled.replace("'", "\\'") + "'"


def _eval_file(name: str) -> str:
    return f"eval_{file_name(name)}.parquet"


def _write_training(config: Config, path: Path) -> None:
    count = config.train.steps * config.train.prompts_per_step
    problems, notes = problems_to_train(config.data, seed=config.run.seed, count=count)
    _write_rows(config, config.data.train, "train", problems, notes, path)


def _write_held_out(config: Config, name: str, path: Path) -> None:
    problems, notes = held_out_problems(config.data, name, seed=config.run.seed, count=config.eval.problems)
    _write_rows(config, name, "eval", problems, notes, path)


def _write_rows(config: Config, source: str, split: str, problems: Sequence[Problem], notes: Sequence[str], path: Path) -> None:
    """Rows as verl reads them; prompts over the limit are left to verl's filter, which has the model's tokenizer."""
    for note in notes:
        logger.warning(note)
    rows = [
        {
            "data_source": source,
            "prompt": chat_messages(problem, config.data),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": _ground_truth(problem)},
            "extra_info": {"index": index, "id": problem.id, "split": split},
        }
        for index, problem in enumerate(problems)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _ground_truth(problem: Problem) -> str:
    """The gold, or the accepted ones as JSON, which our reward function reads; also a gold that itself may look like JSON."""
    if len(problem.golds) == 1 and not problem.answer.lstrip().startswith("["):
        return problem.answer
    return json.dumps(problem.golds, ensure_ascii=False)
