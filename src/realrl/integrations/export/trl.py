"""`realrl export trl`: a recipe as a script for TRL with our `RealTrainer`, like one that a user would write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from realrl.config import Config
from realrl.data.tasks import TASKS
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
    local_path,
    own_module,
    plural,
    refuse,
    trackers,
)
from realrl.models.precision import settle_for_gpus

_SCRIPT = '''"""{title}, made by

    {made_by}

Start it:

    {command}

{arithmetic}

{notes}
"""

import sys

{imports}

MODEL = {model}
PROCESSES = {processes}
DATA = {data}
REWARD = {reward}


def config() -> RealConfig:
    return RealConfig(
{options}    )


def main() -> None:
    args = config()
    if args.world_size != PROCESSES:
        raise SystemExit(f"this script is for {{PROCESSES}} processes, but {{args.world_size}} run; export the recipe again")
    trainer = RealTrainer(
        model=MODEL,
        reward_funcs=verifier_reward(**REWARD),
        args=args,
        train_dataset=prompt_dataset(MODEL, {train_set}, **DATA),
{trainer}    )
    trainer.train(resume_from_checkpoint="--resume" in sys.argv)


if __name__ == "__main__":
    main()
'''


@dataclass(frozen=True, slots=True)
class Batches:
    """How TRL splits the rollouts of a round on each process: micro-batches of `per_device` rows, `accumulation` an update."""

    per_device: int
    accumulation: int
    updates: int

    @property
    def steps_per_generation(self) -> int:
        return self.accumulation * self.updates


def plan_batches(config: Config, processes: int) -> Batches:
    """The largest micro-batch within `train.micro_batch_tokens`, of whole groups if one fits.

    TRL pads a micro-batch to its longest rollout, so each row counts with the longest possible sequence.
    """
    rows = config.train.mini_batch_prompts * config.sampling.group_size // processes
    fits = [size for size in range(1, rows + 1) if rows % size == 0 and size <= _rows_that_fit(config)]
    whole = [size for size in fits if size % config.sampling.group_size == 0]
    size = max(whole or fits)
    return Batches(size, rows // size, config.updates_per_step)


def _rows_that_fit(config: Config) -> int:
    return max(1, config.train.micro_batch_tokens // (config.data.max_prompt_tokens + config.sampling.max_new_tokens))


class _TrlPlan(Plan):
    @cached_property
    def batches(self) -> Batches:
        return plan_batches(self.config, self.machines.processes)

    @property
    def float32_masters(self) -> bool:
        """Whether TRL's optimizer updates float32 weights, which autocast uses in bfloat16."""
        return self.config.optim.master_weights and self.config.model.lora is None

    @property
    def bf16(self) -> bool:
        """Whether the forward pass runs under autocast."""
        model = self.config.model
        return model.autocast == "bfloat16" or (model.dtype == "bfloat16" and self.float32_masters)


def _precision(dtype: str, plan: _TrlPlan) -> dict[str, Any]:
    weights, attention = {"dtype": "float32" if plan.float32_masters else dtype}, plan.config.model.attention
    if attention != "auto":
        weights["attn_implementation"] = attention
    return {"model_init_kwargs": weights, "bf16": plan.bf16}


def _precision_note(dtype: str, plan: _TrlPlan) -> object:
    lossy = dtype == "bfloat16" and plan.config.model.lora is None and not plan.float32_masters
    return lossy and "without optim.master_weights rounding loses most updates, as in our trainer"


def _importance(cap: float, plan: _TrlPlan) -> dict[str, Any]:
    bound = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": cap} if cap else {}
    return {"vllm_importance_sampling_correction": cap > 0} | bound


def _undivided(prompts: int, plan: _TrlPlan) -> object:
    """If a round has several updates, a group must stay within one of them, so on one process."""
    config, processes = plan.config, plan.machines.processes
    whole, what = (prompts, "groups") if config.updates_per_step > 1 else (prompts * config.sampling.group_size, "rollouts")
    fitting = [count for count in range(1, whole + 1) if whole % count == 0]
    return processes not in fitting and (
        f"{processes} processes do not divide the {whole} {what} of an optimizer step; choose --gpus-per-node and --nodes so "
        f"that their product is one of {fitting}, or set train.mini_batch_prompts to a multiple of {processes}"
    )


def _torn_groups(tokens: int, plan: _TrlPlan) -> object:
    rows, size = plan.batches.per_device, plan.config.sampling.group_size
    return (rows % size and plan.batches.updates > 1) and (
        f"a micro-batch of {rows} rollouts has no whole group, so every optimizer step but the first of a round needs one "
        f"more forward pass; --train.micro_batch_tokens {size * plan.longest} avoids it if memory allows"
    )


def _schedule(schedule: str, plan: _TrlPlan) -> dict[str, Any]:
    warm = schedule == "constant" and plan.config.optim.warmup_steps
    return {"lr_scheduler_type": "constant_with_warmup" if warm else schedule}


def _interval(rounds: int, plan: _TrlPlan) -> int:
    """Rounds as optimizer steps, at most the whole run; 0 is the last step only."""
    return min(rounds * plan.config.updates_per_step or plan.updates, plan.updates)


def _evaluation_rows(samples: int, plan: _TrlPlan) -> dict[str, Any]:
    """The rows of all processes together are whole groups of samples."""
    rows = next(rows for rows in range(1, samples + 1) if rows * plan.machines.processes % samples == 0)
    fitting = max(1, _rows_that_fit(plan.config) // rows)
    return {"num_generations_eval": samples, "per_device_eval_batch_size": rows * fitting}


TABLE: Table[_TrlPlan] = {
    "run.dir": Row("output_dir"),
    "run.seed": Row(("seed", "data_seed"), note=lambda v, p: "TRL has its own order of problems and its own random draws"),
    "run.threads": Row(note="set OMP_NUM_THREADS when you start the script"),
    "objective.*": Row(lambda v, p: {"objective": given(v)}),
    "objective.type": Row(
        elsewhere="objective",
        note=lambda v, p: (
            "TRL's rewards do not separate a wrong answer from a missing one" if v == "trpa" else own_module(v, p)
        ),
    ),
    "model.path": Row(elsewhere="MODEL"),
    "model.dtype": Row(_precision, note=_precision_note),
    "model.autocast": Row(elsewhere="bf16"),
    "model.attention": Row(elsewhere="model_init_kwargs"),
    "model.gradient_checkpointing": Row("gradient_checkpointing"),
    "model.device": Row(lambda v, p: {"use_cpu": True}, when=lambda v, p: v == "cpu"),
    "model.compile": Row("torch_compile", when=lambda v, p: v),
    "model.trust_remote_code": Row("trust_remote_code", when=lambda v, p: v),
    "model.lora": Row(elsewhere="peft_config"),
    "model.quantize": Row(
        elsewhere="quantization_config", note="TRL keeps the adapters in bfloat16, which loses small updates; ours are float32"
    ),
    "model.offload_reference": Row(note="TRL keeps the reference model on the device"),
    "data.*": Row(elsewhere="DATA"),
    "data.eval": Row(
        elsewhere="eval_dataset",
        note=lambda v, p: len(v) > 1 and "TRL logs the rewards of all sets under one name, eval_reward",
    ),
    "reward.*": Row(elsewhere="REWARD"),
    "reward.type": Row(elsewhere="REWARD", note=own_module),
    "sampling.group_size": Row("num_generations", refused=lambda v, p: v < 2 and "TRL needs groups of at least 2; set 8"),
    "sampling.temperature": Row("temperature"),
    "sampling.top_p": Row("top_p"),
    "sampling.top_k": Row("top_k"),
    "sampling.max_new_tokens": Row("max_completion_length"),
    "sampling.engine": Row(
        lambda v, p: {"use_vllm": p.vllm} | ({"vllm_mode": "colocate"} if p.vllm else {}),
        note=lambda v, p: v == "hf" and "transformers' generate is slow for long answers; --sampling.engine vllm is fast",
    ),
    "sampling.gpu_memory": Row("vllm_gpu_memory_utilization", when=lambda v, p: p.vllm),
    "sampling.sleep": Row(
        lambda v, p: {"vllm_enable_sleep_mode": v, "vllm_max_model_length": p.longest}, when=lambda v, p: p.vllm
    ),
    "sampling.importance_cap": Row(
        _importance,
        when=lambda v, p: p.vllm,
        refused=lambda v, p: (
            (v and not p.vllm)
            and "TRL weights tokens only with vLLM; set sampling.engine = 'vllm', or sampling.importance_cap = 0"
        ),
    ),
    "sampling.dtype": Row(note="TRL samples with the training weights; vLLM takes the dtype of the model's own configuration"),
    "sampling.batch_rows": Row(note="TRL samples all rollouts of a process at once"),
    "sampling.steps_ahead": Row(refused="GRPOTrainer samples with the newest weights; set sampling.steps_ahead = 0"),
    "train.micro_batch_tokens": Row(lambda v, p: {"per_device_train_batch_size": p.batches.per_device}, note=_torn_groups),
    "train.mini_batch_prompts": Row(lambda v, p: {"gradient_accumulation_steps": p.batches.accumulation}, refused=_undivided),
    "train.prompts_per_step": Row(lambda v, p: {"steps_per_generation": p.batches.steps_per_generation}),
    "train.steps": Row(lambda v, p: {"max_steps": p.updates}),
    "train.parallel": Row(elsewhere="accelerate launch", note="RealTrainer has not been tested under accelerate's FSDP"),
    "train.gradient_route": Row(note="RealTrainer takes the direct route if micro-batches have whole groups, else two passes"),
    "train.layout": Row(note="TRL pads every micro-batch"),
    "train.shuffle_rollouts": Row(note="RealTrainer keeps groups together; the gradient is the same"),
    "train.max_nonfinite_steps": Row(note="TRL does not stop when gradients are not finite"),
    "train.stop_on": Row(note="TRL has no alarms"),
    "optim.type": Row(lambda v, p: {"optim": {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}[v]}),
    "optim.master_weights": Row(elsewhere="bf16"),
    "optim.lr": Row("learning_rate"),
    "optim.weight_decay": Row(
        "weight_decay", note=lambda v, p: v and "TRL does not decay biases and norms, our trainer decays every weight"
    ),
    "optim.betas": Row(lambda v, p: {"adam_beta1": v[0], "adam_beta2": v[1]}),
    "optim.eps": Row("adam_epsilon"),
    "optim.schedule": Row(_schedule, note="TRL changes the learning rate at every optimizer step, our trainer at every round"),
    "optim.warmup_steps": Row(
        lambda v, p: {"warmup_steps": v * p.config.updates_per_step},
        note="TRL raises the learning rate at every optimizer step, from 0; ours at every round, from lr / (warmup_steps + 1)",
    ),
    "optim.max_grad_norm": Row("max_grad_norm"),
    "eval.every": Row(
        lambda v, p: {"eval_strategy": "steps", "eval_steps": _interval(v, p)} if p.evaluates else {"eval_strategy": "no"}
    ),
    "eval.at_start": Row("eval_on_start", when=lambda v, p: p.evaluates),
    "eval.samples": Row(_evaluation_rows, when=lambda v, p: p.evaluates),
    "eval.problems": Row(elsewhere="eval_dataset"),
    "eval.top_p": Row(note="TRL evaluates with sampling.top_p"),
    "eval.greedy": Row(note=lambda v, p: (v and p.evaluates) and "TRL evaluates with samples only"),
    "checkpoint.every": Row(lambda v, p: {"save_strategy": "steps", "save_steps": _interval(v, p)}),
    "checkpoint.keep": Row("save_total_limit"),
    "log.wandb": Row(lambda v, p: {"logging_steps": 1, "report_to": trackers(p) or "none"}),
    "log.trackio": Row(elsewhere="report_to"),
    "log.tensorboard": Row(elsewhere="report_to"),
    "log.rollouts": Row("log_completions"),
    "log.examples": Row("num_completions_to_print"),
    "log.rich": Row(note="TRL has its own progress bar"),
    "log.figure": Row(note="TRL draws no learning curve"),
    "log.tokens": Row(note="TRL saves only texts"),
}


def export_trl(config: Config, machines: Machines, *, made_by: str = "realrl export trl") -> Export:
    """The script, its start command and what TRL does differently. Raises ConfigError for a recipe that TRL cannot run."""
    plan = _TrlPlan(config := settle_for_gpus(config), machines)
    refuse("TRL", TABLE, plan)
    notes, command = engine_notes(TABLE, plan), _command(plan)
    shared = {"seed": config.run.seed} | ({"trust_remote_code": True} if config.model.trust_remote_code else {})
    # A generated task has no end: as many problems as the run will see.
    count = {"problems": config.train.steps * config.train.prompts_per_step} if config.data.train in TASKS else {}
    imports, trainer = _trainer(config, shared)
    lines = []
    for section, options in engine_options(TABLE, plan).items():
        lines += [f"        # {section}\n", *(f"        {name}={_literal(value)},\n" for name, value in options.items())]
    script = _SCRIPT.format(
        title=f"{config.objective.type.upper()} on {_in_docstring(config.model.path)} with TRL",
        made_by=_in_docstring(made_by),
        command=command,
        arithmetic=bullets([_arithmetic(plan)]).removeprefix("- ").replace("\n  ", "\n"),
        notes="What TRL does differently:\n" + _in_docstring(bullets(notes)),
        imports=imports,
        model=_literal(plan.model),
        processes=machines.processes,
        data=_table(_data(config)),
        reward=_table(given(config.reward)),
        options="".join(lines),
        train_set=_arguments(shared | count),
        trainer="".join(f"        {name}={value},\n" for name, value in trainer.items()),
    )
    return Export("train.py", script, command, notes)


def _trainer(config: Config, shared: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The imports of the script and further arguments of RealTrainer."""
    names, before = ["RealConfig", "RealTrainer", "prompt_dataset", "verifier_reward"], []
    trainer, lora = {}, config.model.lora
    if config.data.eval:
        names.insert(2, "eval_datasets")
        trainer["eval_dataset"] = f"eval_datasets(MODEL, {_arguments(shared | {'problems': config.eval.problems})}, **DATA)"
    if lora:
        before.append("from peft import LoraConfig")
        trainer["peft_config"] = (
            f"LoraConfig(r={lora.rank}, lora_alpha={lora.alpha}, target_modules={_literal(lora.targets)}, lora_dropout=0.0, "
            'task_type="CAUSAL_LM")'
        )
    if config.model.quantize == "4bit":
        before = ["import torch", *before, "from transformers import BitsAndBytesConfig"]
        trainer["quantization_config"] = (
            'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_compute_dtype=torch.{config.model.dtype})"
        )
    ours = f"from realrl.integrations.trl import {', '.join(names)}"
    return "\n".join([*before, *([""] if before else []), ours]), trainer


def _arithmetic(plan: _TrlPlan) -> str:
    train, size, batches = plan.config.train, plan.config.sampling.group_size, plan.batches
    return (
        f"{plural(plan.machines.processes, 'process', 'es')} × {batches.per_device} rollouts × {batches.accumulation} "
        f"micro-batches = {train.mini_batch_prompts * size:,} rollouts ({train.mini_batch_prompts} groups of {size}) an "
        f"optimizer step; {plural(batches.updates, 'optimizer step')} for each round of {train.prompts_per_step} prompts; "
        f"{train.steps:,} rounds = {plan.updates:,} optimizer steps."
    )


def _command(plan: _TrlPlan) -> str:
    machines, config = plan.machines, plan.config
    if config.model.device == "cpu":
        return "python train.py" if machines.processes == 1 else f"torchrun --nproc-per-node {machines.processes} train.py"
    words = ["accelerate launch", f"--num_processes {machines.processes}"]
    if config.train.parallel == "fsdp2":
        words.append("--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP")
    elif machines.processes > 1:
        words.append("--multi_gpu")
    words.append(f"--num_machines {machines.nodes}")
    if machines.nodes > 1:
        words.append("--machine_rank $RANK_OF_NODE --main_process_ip $FIRST_NODE --main_process_port 29500")
    words.append(f"--mixed_precision {'bf16' if plan.bf16 else 'no'} --dynamo_backend no")
    return " ".join([*words, "train.py"])


def _data(config: Config) -> dict[str, Any]:
    """`[data]` as arguments, with the full paths of local files."""
    data = config.data
    lists = {key: [local_path(name) for name in names] for key in ("eval", "decontaminate") if (names := getattr(data, key))}
    return given(data) | {"train": local_path(data.train)} | lists


def _literal(value: Any) -> str:
    """A plain value as Python source, with double quotes around texts."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)


def _table(values: dict[str, Any]) -> str:
    return "{\n" + "".join(f"    {_literal(key)}: {_literal(value)},\n" for key, value in values.items()) + "}"


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_literal(value)}" for name, value in values.items())


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")
