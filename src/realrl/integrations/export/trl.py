"""`realrl export trl`: a recipe as a script for TRL with our `RealTrainer`, the script that a user would write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from realrl.config import Config
from realrl.integrations.export.common import (
    Export,
    Machines,
    bullets,
    given,
    left_out_notes,
    local_path,
    model_source,
    objective_table,
    refuse,
    refused_keys,
)
from realrl.models.precision import settle_for_gpus

# Keys of a recipe → what they become; `section.*` is every key of a section.
MAPPED = {
    "run.dir": "output_dir",
    "run.seed": "seed, data_seed, prompt_dataset(seed=)",
    "model.path": "model (a built-in model as the path of its folder)",
    "model.dtype": "model_init_kwargs dtype, bf16",
    "model.autocast": "bf16",
    "model.device": "use_cpu",
    "model.attention": "model_init_kwargs attn_implementation",
    "model.compile": "torch_compile",
    "model.gradient_checkpointing": "gradient_checkpointing",
    "model.trust_remote_code": "trust_remote_code",
    "model.lora": "peft_config",
    "model.quantize": "quantization_config",
    "data.*": "prompt_dataset, eval_datasets",
    "reward.*": "verifier_reward",
    "sampling.engine": "use_vllm, vllm_mode",
    "sampling.group_size": "num_generations",
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
    "sampling.top_k": "top_k",
    "sampling.max_new_tokens": "max_completion_length, vllm_max_model_length",
    "sampling.gpu_memory": "vllm_gpu_memory_utilization",
    "sampling.sleep": "vllm_enable_sleep_mode",
    "sampling.importance_cap": "vllm_importance_sampling_correction, _mode, _clip_max",
    "objective.*": "objective",
    "train.steps": "max_steps (optimizer steps)",
    "train.prompts_per_step": "steps_per_generation",
    "train.mini_batch_prompts": "gradient_accumulation_steps",
    "train.micro_batch_tokens": "per_device_train_batch_size, per_device_eval_batch_size",
    "train.parallel": "accelerate launch --use_fsdp",
    "optim.type": "optim",
    "optim.master_weights": "model_init_kwargs dtype, bf16",
    "optim.lr": "learning_rate",
    "optim.weight_decay": "weight_decay",
    "optim.betas": "adam_beta1, adam_beta2",
    "optim.eps": "adam_epsilon",
    "optim.schedule": "lr_scheduler_type",
    "optim.warmup_steps": "warmup_steps (optimizer steps)",
    "optim.max_grad_norm": "max_grad_norm",
    "eval.every": "eval_steps (optimizer steps)",
    "eval.samples": "num_generations_eval",
    "eval.problems": "eval_datasets(problems=)",
    "eval.at_start": "eval_on_start",
    "checkpoint.every": "save_steps (optimizer steps)",
    "checkpoint.keep": "save_total_limit",
    "log.wandb": "report_to",
    "log.trackio": "report_to",
    "log.tensorboard": "report_to",
    "log.rollouts": "log_completions",
    "log.examples": "num_completions_to_print",
}
# Keys without a counterpart: named in the notes where a recipe sets them.
LEFT_OUT = {
    "run.threads": "set OMP_NUM_THREADS when you start the script",
    "model.offload_reference": "TRL keeps the reference model on the device",
    "sampling.dtype": "TRL samples with the weights in training, and vLLM in the type of the model's own configuration",
    "sampling.batch_rows": "TRL samples all rollouts of a process at once",
    "train.gradient_route": "RealTrainer takes the direct route where micro-batches hold whole groups, else two passes",
    "train.layout": "TRL pads",
    "train.shuffle_rollouts": "RealTrainer keeps groups together; the gradient is the same",
    "train.max_nonfinite_steps": "TRL does not stop at gradients that are not finite",
    "train.stop_on": "TRL has no alarms",
    "eval.top_p": "TRL evaluates with sampling.top_p",
    "eval.greedy": "TRL evaluates with samples",
    "log.rich": "TRL has its own progress bar",
    "log.figure": "TRL draws none",
    "log.tokens": "TRL saves texts alone",
}
# Keys that must be at their default: what to set instead.
REFUSED = {
    "sampling.steps_ahead": "GRPOTrainer samples with the newest weights; set sampling.steps_ahead = 0",
}
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
        raise SystemExit(f"batch sizes for {{PROCESSES}} processes, {{args.world_size}} started; export the recipe for these")
    trainer = RealTrainer(
        model=MODEL,
        reward_funcs=verifier_reward(**REWARD),
        args=args,
        train_dataset=prompt_dataset(MODEL, {train_set}**DATA),
{trainer}    )
    trainer.train(resume_from_checkpoint="--resume" in sys.argv)


if __name__ == "__main__":
    main()
'''


@dataclass(frozen=True, slots=True)
class Batches:
    """How TRL cuts the rollouts of a sampling round: `per_device` rows, `accumulation` times, on each process."""

    per_device: int
    accumulation: int
    updates: int

    @property
    def steps_per_generation(self) -> int:
        return self.accumulation * self.updates


def export_trl(config: Config, machines: Machines, *, made_by: str = "realrl export trl") -> Export:
    """The script, how to start it, and what TRL does otherwise. Raises ConfigError for what cannot be carried over."""
    config = settle_for_gpus(config)
    refuse("TRL", _faults(config, machines))
    batches = plan_batches(config, machines.processes)
    model, notes, command = model_source(config), _notes(config, batches), _command(config, machines)
    shared = {"seed": config.run.seed} | ({"trust_remote_code": True} if config.model.trust_remote_code else {})
    trainer = {}
    if config.data.eval:
        arguments = _arguments(shared | {"problems": config.eval.problems})
        trainer["eval_dataset"] = f"eval_datasets(MODEL, {arguments}, **DATA)"
    if config.model.lora:
        targets = config.model.lora.targets
        trainer["peft_config"] = (
            f"LoraConfig(r={config.model.lora.rank}, lora_alpha={config.model.lora.alpha}, "
            f'target_modules={_literal(targets)}, lora_dropout=0.0, task_type="CAUSAL_LM")'
        )
    if config.model.quantize == "4bit":
        trainer["quantization_config"] = (
            'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_compute_dtype=torch.{config.model.dtype})"
        )
    # A generated task has no end: as many problems as the run will see.
    train_set = shared | {"problems": config.train.steps * config.train.prompts_per_step}
    script = _SCRIPT.format(
        title=f"{config.objective.type.upper()} on {_in_docstring(config.model.path)} with TRL",
        made_by=_in_docstring(made_by),
        command=command,
        arithmetic=bullets([_arithmetic(config, machines, batches)]).removeprefix("- ").replace("\n  ", "\n"),
        notes="What TRL does otherwise:\n" + _in_docstring(bullets(notes)),
        imports=_imports(config),
        model=_literal(model),
        processes=machines.processes,
        data=_table(_data(config)),
        reward=_table({"type": config.reward.type, **given(config.reward)}),
        options=_options(config, batches, machines.processes),
        train_set=_arguments(train_set if _generated(config) else shared) + ", ",
        trainer="".join(f"        {name}={value},\n" for name, value in trainer.items()),
    )
    return Export("train.py", script, command, notes)


def plan_batches(config: Config, processes: int) -> Batches:
    """The largest micro-batch of `train.micro_batch_tokens`, of whole groups where one fits.

    TRL pads a micro-batch to its longest rollout, so it is sized for the longest that may be.
    """
    rows = config.train.mini_batch_prompts * config.sampling.group_size // processes
    fits = [size for size in range(1, rows + 1) if rows % size == 0 and size <= max(1, _rows_that_fit(config))]
    whole = [size for size in fits if size % config.sampling.group_size == 0]
    size = max(whole or fits)
    return Batches(size, rows // size, config.updates_per_step)


def _rows_that_fit(config: Config) -> int:
    return config.train.micro_batch_tokens // (config.data.max_prompt_tokens + config.sampling.max_new_tokens)


def _faults(config: Config, machines: Machines) -> list[str]:
    faults, sampling = refused_keys(config, REFUSED), config.sampling
    size, mini = sampling.group_size, config.train.mini_batch_prompts
    if size < 2:
        faults.append(f"sampling.group_size = {size}: TRL needs groups of at least 2; set 8")
    if sampling.importance_cap and sampling.engine != "vllm":
        faults.append(
            f"sampling.importance_cap = {sampling.importance_cap}: TRL corrects for vLLM's numerics alone; set "
            "sampling.engine = 'vllm', or sampling.importance_cap = 0"
        )
    # With several optimizer steps a round a group must lie within one of them, hence on one process.
    whole, what = (mini, "groups") if config.updates_per_step > 1 else (mini * size, "rollouts")
    if whole % machines.processes:
        fitting = [count for count in range(1, whole + 1) if whole % count == 0]
        faults.append(
            f"{machines.processes} processes do not divide the {whole} {what} of an optimizer step; choose --gpus-per-node and "
            f"--nodes so that their product is one of {fitting}, or set train.mini_batch_prompts to a multiple of "
            f"{machines.processes}"
        )
    return faults


def _notes(config: Config, batches: Batches) -> list[str]:
    """What TRL does otherwise."""
    optim, sampling, lora = config.optim, config.sampling, config.model.lora is not None
    notes = left_out_notes(config, LEFT_OUT)
    notes.append(f"run.seed = {config.run.seed}: the order of the problems and the draws are TRL's, not our trainer's")
    if sampling.engine == "hf":
        notes.append("sampling.engine = 'hf': transformers' generate, slow for long answers; --sampling.engine vllm is fast")
    if batches.per_device % sampling.group_size and batches.updates > 1:
        fit = sampling.group_size * (config.data.max_prompt_tokens + sampling.max_new_tokens)
        notes.append(
            f"a micro-batch of {batches.per_device} rollouts holds no whole group, so that every optimizer step but the first "
            f"after sampling costs one forward pass more; --train.micro_batch_tokens {fit} would avoid it, if memory allows"
        )
    if optim.weight_decay:
        notes.append("optim.weight_decay: TRL leaves biases and norms out, our trainer decays every weight")
    if optim.warmup_steps:
        notes.append("optim.warmup_steps: TRL's first optimizer step has the learning rate 0, ours lr / (warmup_steps + 1)")
    if optim.warmup_steps or optim.schedule != "constant":
        notes.append("optim.schedule: TRL changes the learning rate at every optimizer step, ours at every sampling round")
    if config.data.eval and config.eval.greedy:
        notes.append("eval.greedy: TRL evaluates with samples, not greedily")
    if len(config.data.eval) > 1:
        notes.append("data.eval: TRL logs the rewards of every set as eval_reward, beside the set's own eval_NAME_runtime")
    if config.train.parallel == "fsdp2":
        notes.append("train.parallel = 'fsdp2': RealTrainer has not been tested under accelerate's FSDP")
    if config.objective.type == "trpa":
        notes.append("objective.type = 'trpa': TRL's rewards tell right from wrong alone, not which answers cannot be read")
    if config.model.quantize != "none":
        notes.append("model.quantize = '4bit': TRL keeps the adapters in bfloat16, which loses small updates; ours are float32")
    elif config.model.dtype == "bfloat16" and not optim.master_weights and not lora:
        notes.append("model.dtype = 'bfloat16' without optim.master_weights: rounding loses most updates, as in our trainer")
    return notes


def _arithmetic(config: Config, machines: Machines, batches: Batches) -> str:
    train, size = config.train, config.sampling.group_size
    updates, many = batches.updates, "es" if machines.processes > 1 else ""
    return (
        f"{machines.processes} process{many} × {batches.per_device} rollouts × {batches.accumulation} micro-batches = "
        f"{train.mini_batch_prompts * size:,} rollouts ({train.mini_batch_prompts} groups of {size}) an optimizer step; "
        f"{updates} optimizer step{'s' if updates > 1 else ''} for each round of {train.prompts_per_step} prompts; "
        f"{train.steps:,} rounds = {train.steps * updates:,} optimizer steps."
    )


def _command(config: Config, machines: Machines) -> str:
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
    words.append(f"--mixed_precision {'bf16' if _bf16(config) else 'no'} --dynamo_backend no")
    return " ".join([*words, "train.py"])


def _bf16(config: Config) -> bool:
    """Whether the forward pass runs under autocast."""
    section = config.model
    masters = section.dtype == "bfloat16" and config.optim.master_weights and section.lora is None
    return masters or section.autocast == "bfloat16"


def _weights_dtype(config: Config) -> str:
    """With master weights the weights that TRL's optimizer updates are the float32 ones, cast in the forward pass."""
    masters = config.optim.master_weights and config.model.lora is None
    return "float32" if masters else config.model.dtype


def _options(config: Config, batches: Batches, processes: int) -> str:
    """The arguments of RealConfig, section by section."""
    model, train, optim = config.model, config.train, config.optim
    updates = batches.updates
    total = train.steps * updates
    init = {"dtype": _weights_dtype(config)}
    if model.attention != "auto":
        init["attn_implementation"] = model.attention
    precision = "[model]"
    if model.dtype == "bfloat16" and _weights_dtype(config) == "float32":
        precision += ": bfloat16 with float32 master weights is float32 weights under autocast"
    sections: dict[str, dict[str, Any]] = {
        "[run]": {"output_dir": config.run.dir, "seed": config.run.seed, "data_seed": config.run.seed},
        "[objective]": {"objective": objective_table(config)},
        precision: {
            "model_init_kwargs": init,
            "bf16": _bf16(config),
            "gradient_checkpointing": model.gradient_checkpointing,
            **({"use_cpu": True} if model.device == "cpu" else {}),
            **({"torch_compile": True} if model.compile else {}),
            **({"trust_remote_code": True} if model.trust_remote_code else {}),
        },
        "[sampling]": _sampling(config),
        "[train]": {
            "per_device_train_batch_size": batches.per_device,
            "gradient_accumulation_steps": batches.accumulation,
            "steps_per_generation": batches.steps_per_generation,
            "max_steps": total,
        },
        "[optim]": {
            "optim": "adamw_bnb_8bit" if optim.type == "adamw_8bit" else "adamw_torch_fused",
            "learning_rate": optim.lr,
            "weight_decay": optim.weight_decay,
            "adam_beta1": optim.betas[0],
            "adam_beta2": optim.betas[1],
            "adam_epsilon": optim.eps,
            "lr_scheduler_type": "constant_with_warmup"
            if optim.schedule == "constant" and optim.warmup_steps
            else optim.schedule,
            "warmup_steps": optim.warmup_steps * updates,
            "max_grad_norm": optim.max_grad_norm,
        },
        "[eval]": _evaluation(config, processes, total),
        "[checkpoint]": {
            "save_strategy": "steps",
            "save_steps": min(config.checkpoint.every * updates or total, total),
            "save_total_limit": config.checkpoint.keep,
        },
        "[log]": {
            "logging_steps": 1,
            "report_to": [name for name in ("wandb", "trackio", "tensorboard") if getattr(config.log, name)] or "none",
            "log_completions": config.log.rollouts,
            "num_completions_to_print": config.log.examples,
        },
    }
    lines = []
    for comment, options in sections.items():
        lines.append(f"        # {comment}\n")
        lines += [f"        {name}={_literal(value)},\n" for name, value in options.items()]
    return "".join(lines)


def _sampling(config: Config) -> dict[str, Any]:
    sampling = config.sampling
    options: dict[str, Any] = {
        "num_generations": sampling.group_size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_completion_length": sampling.max_new_tokens,
        "use_vllm": sampling.engine == "vllm",
    }
    if sampling.engine != "vllm":
        return options
    options |= {
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": sampling.gpu_memory,
        "vllm_enable_sleep_mode": sampling.sleep,
        "vllm_max_model_length": config.data.max_prompt_tokens + sampling.max_new_tokens,
        "vllm_importance_sampling_correction": sampling.importance_cap > 0,
    }
    if sampling.importance_cap:
        options |= {
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": sampling.importance_cap,
        }
    return options


def _evaluation(config: Config, processes: int, total: int) -> dict[str, Any]:
    """Evaluation at the recipe's steps and always at the last; the rows of all processes are whole groups of samples."""
    if not config.data.eval:
        return {"eval_strategy": "no"}
    samples = config.eval.samples
    rows = next(rows for rows in range(1, samples + 1) if rows * processes % samples == 0)
    return {
        "eval_strategy": "steps",
        "eval_steps": min(config.eval.every * config.updates_per_step or total, total),
        "eval_on_start": config.eval.at_start,
        "num_generations_eval": samples,
        "per_device_eval_batch_size": rows * max(1, _rows_that_fit(config) // rows),
    }


def _data(config: Config) -> dict[str, Any]:
    """`[data]` as arguments, with local files by their full path."""
    table = given(config.data) | {"train": local_path(config.data.train)}
    for key in ("eval", "decontaminate"):
        if names := getattr(config.data, key):
            table[key] = [local_path(name) for name in names]
    return table


def _generated(config: Config) -> bool:
    from realrl.data.tasks import TASKS

    return config.data.train in TASKS


def _imports(config: Config) -> str:
    names = ["RealConfig", "RealTrainer", *(["eval_datasets"] if config.data.eval else []), "prompt_dataset", "verifier_reward"]
    lines = []
    if config.model.quantize != "none":
        lines.append("import torch")
    if config.model.lora:
        lines.append("from peft import LoraConfig")
    if config.model.quantize != "none":
        lines.append("from transformers import BitsAndBytesConfig")
    return "\n".join([*lines, *([""] if lines else []), f"from realrl.integrations.trl import {', '.join(names)}"])


def _literal(value: Any) -> str:
    """Python source of a plain value, texts in double quotes."""
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
