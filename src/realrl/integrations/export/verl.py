"""`realrl export verl`: a recipe as the command of verl's own launcher with our trainer, and its data as Parquet."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from realrl.config import Config, DataSection, LoraSection, RewardSection
from realrl.integrations.export.common import (
    Export,
    Machines,
    Plan,
    Row,
    Table,
    bullets,
    engine_notes,
    engine_options,
    given,
    own_module,
    plural,
    raise_faults,
    refuse,
    trackers,
)
from realrl.integrations.export.parquet import write_held_out, write_training
from realrl.models import load_tokenizer
from realrl.models.precision import settle_for_gpus
from realrl.objectives import BaseObjectiveConfig
from realrl.system.files import file_name

# The number of verl's processes that ask for rollouts, by default.
_AGENTS = 8
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
# With -o FOLDER this command also writes the data, which this script reads from its own folder. Start it:
#
#     {command}
#
# You can add options of verl, which replace those below: {command} trainer.val_only=True
#
{arithmetic}
#
# What verl does differently:
{notes}
set -euo pipefail
HERE=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)

exec python -m verl.trainer.main_ppo \\
{options} \\
    "$@"
"""
_MODEL, _ACTOR, _REF, _ROLLOUT = (f"actor_rollout_ref.{role}" for role in ("model", "actor", "ref", "rollout"))
_OPTIM = f"{_ACTOR}.optim"
_REWARD = "reward.custom_reward_function"


class _Beside(str):
    """The path of a file in the folder of the script, which the script calls `$HERE`."""


class _VerlPlan(Plan):
    @property
    def needs_ref(self) -> bool:
        return self.config.objective.needs_ref

    @cached_property
    def plain(self) -> bool | None:
        """Whether prompts go without the model's chat template; None for a model of the hub, which is not loaded here."""
        if self.config.data.chat_template == "plain":
            return True
        if not Path(self.model).is_dir():
            return None
        return not load_tokenizer(self.model, trust_remote_code=self.config.model.trust_remote_code).chat_template


def _precision(dtype: str, plan: _VerlPlan) -> dict[str, Any]:
    """FSDP casts the weights for each pass, so float32 weights are the master weights; adapters are always float32.

    verl's FSDP computes in bfloat16 unless `mixed_precision` is given; it does not read `fsdp_config.dtype`.
    """
    float32 = plan.config.optim.master_weights or plan.config.model.lora is not None
    types = {_ACTOR: "float32" if float32 else dtype} | ({_REF: dtype} if plan.needs_ref else {})
    options = {f"{role}.fsdp_config.model_dtype": {"float32": "fp32", "bfloat16": "bf16"}[kind] for role, kind in types.items()}
    if "bfloat16" not in (dtype, plan.config.model.autocast):
        options |= {f"+{role}.fsdp_config.mixed_precision.param_dtype": "fp32" for role in types}
    return options


def _lora(lora: LoraSection, plan: _VerlPlan) -> dict[str, Any]:
    return {
        f"{_MODEL}.lora_rank": lora.rank,
        f"{_MODEL}.lora_alpha": lora.alpha,
        f"{_MODEL}.target_modules": lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        # verl sends only the adapters to vLLM, so vLLM has to load the base weights itself.
        f"{_ROLLOUT}.load_format": "safetensors",
    }


def _files(data: DataSection, plan: _VerlPlan) -> dict[str, Any]:
    train = _Beside("$HERE/train.parquet")
    return {"data.train_files": train, "data.val_files": [_Beside(f"$HERE/{_eval_file(name)}") for name in data.eval] or train}


def _eval_file(name: str) -> str:
    return f"eval_{file_name(name)}.parquet"


def _objective(objective: BaseObjectiveConfig, plan: _VerlPlan) -> dict[str, Any]:
    """`use_kl_loss` makes verl load the reference model; the penalty itself is part of our objective."""
    return {
        "trainer.v1.trainer_mode": "real_colocate_async" if plan.config.sampling.steps_ahead else "real_sync",
        "algorithm.adv_estimator": "real",
        f"{_ACTOR}.policy_loss.loss_mode": "real",
        f"{_ACTOR}.use_kl_loss": plan.needs_ref,
        f"{_ACTOR}.kl_loss_coef": 0.0,
        **_nested("+algorithm.real", given(objective)),
    }


def _reward(reward: RewardSection, plan: _VerlPlan) -> dict[str, Any]:
    return {
        f"{_REWARD}.path": "pkg://realrl.integrations.verl.reward",
        f"{_REWARD}.name": "compute_score",
        **_nested(f"+{_REWARD}.reward_kwargs", given(reward)),
    }


def _run(folder: str, plan: _VerlPlan) -> dict[str, Any]:
    return {
        "trainer.default_local_dir": str(Path(folder) / "checkpoints"),
        "trainer.project_name": "realrl",
        "trainer.experiment_name": Path(folder).name,
        "trainer.n_gpus_per_node": plan.machines.gpus_per_node,
        "trainer.nnodes": plan.machines.nodes,
    }


TABLE: Table[_VerlPlan] = {
    "run.dir": Row(_run),
    "run.seed": Row(
        ("data.seed", f"{_ACTOR}.data_loader_seed", f"{_ROLLOUT}.seed"),
        note=lambda v, p: "verl has its own order of problems and its own random draws",
    ),
    "run.threads": Row(note="set OMP_NUM_THREADS when you start Ray"),
    "model.path": Row(lambda v, p: {f"{_MODEL}.path": p.model}),
    "model.dtype": Row(_precision),
    "model.autocast": Row(elsewhere="mixed_precision"),
    "model.device": Row("trainer.device", when=lambda v, p: v != "auto"),
    # verl packs sequences only for flash attention.
    "model.attention": Row(
        lambda v, p: {
            f"+{_MODEL}.override_config.attn_implementation": v,
            f"{_MODEL}.use_remove_padding": v == "flash_attention_2",
        },
        when=lambda v, p: v != "auto",
        refused=lambda v, p: (
            v == "flex_attention" and "verl packs sequences for flash_attention_2; set model.attention = 'auto'"
        ),
    ),
    "model.compile": Row(note="verl chooses itself which parts to compile"),
    "model.gradient_checkpointing": Row(f"{_MODEL}.enable_gradient_checkpointing"),
    "model.trust_remote_code": Row((f"{_MODEL}.trust_remote_code", "data.trust_remote_code"), when=lambda v, p: v),
    "model.lora": Row(_lora, when=lambda v, p: v),
    "model.quantize": Row(refused="verl does not train 4-bit weights; set model.quantize = 'none'"),
    "model.offload_reference": Row(f"{_REF}.fsdp_config.param_offload", when=lambda v, p: p.needs_ref),
    "data.*": Row(_files),
    "data.chat_template": Row(
        lambda v, p: {f"{_MODEL}.custom_chat_template": _PLAIN_TEMPLATE},
        when=lambda v, p: p.plain,
        note=lambda v, p: (
            p.plain is None and "verl uses the model's own chat template; if the model has none, add --data.chat_template plain"
        ),
    ),
    "data.max_prompt_tokens": Row(lambda v, p: {"data.max_prompt_length": v, "data.filter_overlong_prompts": True}),
    "reward.*": Row(_reward),
    "reward.type": Row(elsewhere="reward_kwargs", note=own_module),
    "sampling.engine": Row(
        lambda v, p: {f"{_ROLLOUT}.name": "vllm", f"{_ROLLOUT}.tensor_model_parallel_size": 1},
        note=lambda v, p: not p.vllm and "verl samples with a server; this script uses vLLM (or add rollout.name=sglang)",
    ),
    "sampling.group_size": Row(f"{_ROLLOUT}.n", refused=lambda v, p: v < 2 and "verl needs groups of at least 2; set 8"),
    "sampling.temperature": Row((f"{_ROLLOUT}.temperature", f"{_ROLLOUT}.val_kwargs.temperature")),
    "sampling.top_p": Row(f"{_ROLLOUT}.top_p"),
    "sampling.top_k": Row(lambda v, p: {f"{_ROLLOUT}.top_k": v or -1, f"{_ROLLOUT}.val_kwargs.top_k": v or -1}),
    "sampling.max_new_tokens": Row("data.max_response_length"),
    "sampling.dtype": Row(lambda v, p: {f"{_ROLLOUT}.dtype": p.config.model.dtype if v == "same" else v}),
    "sampling.batch_rows": Row(note="verl's rollout engine schedules its rows itself"),
    # In a recipe for another sampler the values of these two keys were not chosen for vLLM.
    "sampling.gpu_memory": Row(f"{_ROLLOUT}.gpu_memory_utilization", when=lambda v, p: p.vllm),
    "sampling.sleep": Row(f"{_ROLLOUT}.free_cache_engine", when=lambda v, p: p.vllm),
    "sampling.steps_ahead": Row(
        elsewhere="trainer_mode", note="in verl a rollout may span several updates of the weights, in our trainer one"
    ),
    "sampling.importance_cap": Row(refused="realrl's trainers in verl do not weight tokens; set sampling.importance_cap = 0"),
    "objective.*": Row(_objective),
    "objective.type": Row(elsewhere="algorithm.real", note=own_module),
    # An epoch has at least one step, so total_training_steps ends the run.
    "train.steps": Row(("trainer.total_training_steps", "trainer.total_epochs")),
    "train.prompts_per_step": Row(lambda v, p: {"data.train_batch_size": v, f"{_ROLLOUT}.agent.num_workers": min(_AGENTS, v)}),
    "train.mini_batch_prompts": Row(f"{_ACTOR}.ppo_mini_batch_size"),
    "train.micro_batch_tokens": Row(
        lambda v, p: {f"{_ACTOR}.use_dynamic_bsz": True, f"{_ACTOR}.ppo_max_token_len_per_gpu": max(v, p.longest)},
        note=lambda v, p: (
            v < p.longest and f"raised to {p.longest}, the longest sequence, because verl does not split sequences"
        ),
    ),
    "train.parallel": Row(
        lambda v, p: {f"{_ACTOR}.strategy": "fsdp2"}, note="verl always shards the model (FSDP2); the result is the same"
    ),
    "train.gradient_route": Row(note="our trainer in verl is exact for any split of the rows"),
    "train.layout": Row(note="verl packs sequences"),
    "train.shuffle_rollouts": Row(
        lambda v, p: {f"{_ACTOR}.shuffle": True}, note="verl balances a mini-batch over its ranks; the gradient is the same"
    ),
    "train.max_nonfinite_steps": Row(note="verl skips updates that are not finite and does not stop"),
    "train.stop_on": Row(note="verl has no alarms"),
    "optim.type": Row(refused="8-bit optimizer states do not work with sharded weights; set optim.type = 'adamw'"),
    "optim.master_weights": Row(elsewhere="model_dtype"),
    "optim.lr": Row(f"{_OPTIM}.lr"),
    "optim.weight_decay": Row(f"{_OPTIM}.weight_decay"),
    "optim.betas": Row(lambda v, p: {f"{_OPTIM}.betas": list(v)}),
    "optim.eps": Row(f"+{_OPTIM}.override_optimizer_config.eps"),
    "optim.schedule": Row(
        f"{_OPTIM}.lr_scheduler_type",
        note="verl changes the learning rate at every optimizer step, our trainer at every round",
        refused=lambda v, p: v == "linear" and "verl's FSDP has only constant and cosine; set optim.schedule = 'cosine'",
    ),
    # In rounds: our trainer in verl multiplies it by the optimizer steps of a round.
    "optim.warmup_steps": Row(
        f"{_OPTIM}.lr_warmup_steps",
        note="verl raises the learning rate at every optimizer step, from 0; ours at every round, from lr / (warmup_steps + 1)",
    ),
    "optim.max_grad_norm": Row(f"{_OPTIM}.clip_grad"),
    # verl also evaluates and saves at the last step.
    "eval.every": Row(lambda v, p: {"trainer.test_freq": (v or p.config.train.steps) if p.evaluates else -1}),
    "eval.at_start": Row(lambda v, p: {"trainer.val_before_train": v and p.evaluates}),
    "eval.samples": Row(lambda v, p: {f"{_ROLLOUT}.val_kwargs.n": v, f"{_ROLLOUT}.val_kwargs.do_sample": True}),
    "eval.top_p": Row(lambda v, p: {f"{_ROLLOUT}.val_kwargs.top_p": v or p.config.sampling.top_p}),
    "eval.problems": Row(elsewhere="the rows of data.val_files"),
    "eval.greedy": Row(note=lambda v, p: (v and p.evaluates) and "verl evaluates with samples only"),
    "checkpoint.every": Row(lambda v, p: {"trainer.save_freq": v or p.config.train.steps}),
    "checkpoint.keep": Row("trainer.max_actor_ckpt_to_keep"),
    "log.wandb": Row(lambda v, p: {"trainer.logger": ["console", *trackers(p)]}),
    "log.trackio": Row(elsewhere="trainer.logger"),
    "log.tensorboard": Row(elsewhere="trainer.logger"),
    "log.rollouts": Row(
        lambda v, p: {"trainer.rollout_data_dir": str(Path(p.config.run.dir) / "rollouts")}, when=lambda v, p: v
    ),
    "log.examples": Row("trainer.log_val_generations"),
    "log.rich": Row(note="verl prints to the console"),
    "log.figure": Row(note="verl draws no learning curve"),
    "log.tokens": Row(note="verl saves only texts"),
}


def export_verl(config: Config, machines: Machines, *, made_by: str = "realrl export verl") -> Export:
    """The command as a script, its data and what verl does differently. Raises ConfigError if verl cannot run the recipe."""
    plan = _VerlPlan(config := settle_for_gpus(config), machines)
    refuse("verl", TABLE, plan)
    sections, notes = engine_options(TABLE, plan), engine_notes(TABLE, plan)
    raise_faults("verl", _interpolations(sections))
    lines = []
    for section, options in sections.items():
        lines += [f"    `# {section}` \\", *(f"    {_word(key, value)} \\" for key, value in options.items())]
    files = {"train.parquet": partial(write_training, config)}
    files |= {_eval_file(name): partial(write_held_out, config, name) for name in config.data.eval}
    command = "bash train.sh"
    script = _SCRIPT.format(
        title=_in_comment(f"{config.objective.type.upper()} on {config.model.path} with verl"),
        made_by=_in_comment(made_by),
        command=command,
        arithmetic=bullets([_arithmetic(plan)], "# ").replace("# - ", "# ").replace("\n#   ", "\n# "),
        notes=bullets(notes, "# "),
        options="\n".join(lines).removesuffix(" \\"),
    )
    return Export("train.sh", script, command, notes, files)


def _arithmetic(plan: _VerlPlan) -> str:
    train = plan.config.train
    return (
        f"{plan.machines.nodes} × {plan.machines.gpus_per_node} GPUs; {train.prompts_per_step} prompts × "
        f"{plan.config.sampling.group_size} rollouts a round; {plural(plan.config.updates_per_step, 'optimizer step')} of "
        f"{train.mini_batch_prompts} groups; {train.steps:,} rounds = {plan.updates:,} optimizer steps."
    )


def _nested(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """One option for each leaf of a table; a leading + tells Hydra that verl's own configuration does not have the key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _nested(f"{prefix}.{key}", value) if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return flat


def _word(key: str, value: Any) -> str:
    """One argument for bash. Bash expands `$HERE` in the names of our own files, and nothing else."""
    text = f"{key}={_hydra(value)}"
    if any(isinstance(part, _Beside) for part in _parts(value)):
        return '"' + text.replace('"', '\\"') + '"'
    return shlex.quote(text)


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _interpolations(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A fault for each text that verl's configuration would change, for example by an environment variable."""
    return [
        f"{key} would be {value!r}, and verl's configuration replaces ${{…}} by other text; choose a name without it"
        for options in sections.values()
        for key, value in options.items()
        if any(isinstance(part, str) and "${" in part for part in _parts(value))
    ]


def _in_comment(text: str) -> str:
    return text.replace("\n", "\\n")


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides; a text is quoted if it could be read as something else."""
    if isinstance(value, list):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if not isinstance(value, str) or (_BARE.fullmatch(value) and value.lower() not in _WORDS):
        return str(value)
    # Hydra halves backslashes only before a quote and at the end.
    doubled = re.sub(r"\\+(?='|$)", lambda found: found[0] * 2, value)
    return "'" + doubled.replace("'", "\\'") + "'"
