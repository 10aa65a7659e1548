"""Exported scripts read by TRL's own configuration, and one of them run to its end."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install 'realrl[trl]'")

from transformers import TrainingArguments  # noqa: E402
from trl.trainer.utils import RepeatSampler  # noqa: E402

from realrl.config import load_config  # noqa: E402
from realrl.data import load_problems, render_prompts  # noqa: E402
from realrl.errors import ConfigError  # noqa: E402
from realrl.integrations.export import Machines, export_trl  # noqa: E402
from realrl.integrations.trl import eval_datasets, prompt_dataset  # noqa: E402
from realrl.models import load_tokenizer  # noqa: E402
from realrl.models.adder import character_tokenizer  # noqa: E402

ROOT = Path(__file__).parents[2]
# recipes/study holds sweeps.
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.parent.name not in ("study", "base"))
TINY = ROOT / "recipes" / "tiny.toml"
PAPER = ROOT / "recipes" / "paper"


def exported(path, processes, folder, monkeypatch, **overrides):
    """The recipe and the RealConfig that its script makes on `processes` processes."""
    overrides = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    config = load_config(path, {"model.device": "cpu", **overrides})
    export_trl(config, Machines(processes)).write(folder)
    spec = importlib.util.spec_from_file_location("exported_train", folder / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: processes))
    return config, script.config(), script


@pytest.mark.parametrize("processes", [1, 4, 8])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_trl_reads_every_recipe_with_the_same_arithmetic(path, processes, tmp_path, monkeypatch):
    if path.stem == "gsm8k_smollm2" and processes == 8:
        pytest.skip("4 groups of an optimizer step do not go to 8 processes")
    config, args, script = exported(path, processes, tmp_path, monkeypatch, run__dir=tmp_path / "run")
    assert processes == script.PROCESSES
    size, mini, round_ = config.sampling.group_size, config.train.mini_batch_prompts, config.train.prompts_per_step
    assert processes * args.per_device_train_batch_size * args.gradient_accumulation_steps == mini * size
    assert args.generation_batch_size == round_ * size
    assert args.max_steps == config.train.steps * round_ // mini
    assert args.max_steps * mini == config.train.steps * round_
    assert args.steps_per_generation == args.gradient_accumulation_steps * (round_ // mini)
    assert args.num_iterations == 1
    # TRL's own sampler: a generation is that many prompts, each as often as its group is large.
    sampler = RepeatSampler(range(4 * round_), size, args.generation_batch_size // size, shuffle=False)
    first = list(sampler)[: args.generation_batch_size]
    assert len(set(first)) == round_ and all(first.count(prompt) == size for prompt in set(first))
    assert args.learning_rate == config.optim.lr
    assert (args.temperature, args.top_p) == (config.sampling.temperature, config.sampling.top_p)
    assert args.build_objective().model_dump() == config.objective.model_dump()
    assert (args.beta != 0) == args.build_objective().needs_ref
    assert args.per_device_eval_batch_size * processes % config.eval.samples == 0
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    assert args.per_device_train_batch_size == 1 or (
        args.per_device_train_batch_size * longest <= config.train.micro_batch_tokens
    )
    assert args.seed == config.run.seed and args.output_dir == str(tmp_path / "run")


def test_the_paper_s_run_has_its_numbers(tmp_path, monkeypatch):
    """32 prompts × 8 rollouts an optimizer step, 4 of them a round, 1,400 rounds (Section 5.1)."""
    _, args, _ = exported(PAPER / "real_1.5b_deepscaler.toml", 8, tmp_path, monkeypatch)
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 256
    assert (args.max_steps, args.generation_batch_size, args.learning_rate) == (5600, 1024, 2e-6)
    assert (args.temperature, args.max_completion_length, args.num_generations) == (0.6, 8192, 8)
    # Evaluation every 100 rounds, checkpoints every 50.
    assert (args.eval_steps, args.save_steps, args.save_total_limit, args.eval_on_start) == (400, 200, 3, True)
    assert (args.bf16, args.model_init_kwargs["dtype"], args.gradient_checkpointing) == (True, "float32", True)


@pytest.mark.parametrize(
    ("overrides", "dtype", "bf16"),
    [
        ({"model__dtype": "float32"}, "float32", False),
        ({"model__dtype": "float32", "model__autocast": "bfloat16"}, "float32", True),
        ({"model__dtype": "bfloat16", "optim__master_weights": "true"}, "float32", True),
        ({"model__dtype": "bfloat16"}, "bfloat16", False),
        ({"model__dtype": "bfloat16", "optim__master_weights": "true", "model__lora": "{ rank = 4 }"}, "bfloat16", False),
    ],
)
def test_precision(overrides, dtype, bf16, tmp_path, monkeypatch):
    _, args, _ = exported(TINY, 1, tmp_path, monkeypatch, **overrides)
    assert (args.model_init_kwargs["dtype"], args.bf16) == (dtype, bf16)


def test_options_away_from_their_defaults(tmp_path, monkeypatch):
    changes = {
        "optim__schedule": "cosine",
        "optim__warmup_steps": 5,
        "optim__betas": "[0.8, 0.95]",
        "optim__eps": "1e-6",
        "optim__max_grad_norm": 0.5,
        "optim__type": "adamw_8bit",
        "train__mini_batch_prompts": 4,
        "sampling__engine": "vllm",
        "sampling__importance_cap": 2.0,
        "sampling__gpu_memory": 0.25,
        "sampling__sleep": "true",
        "sampling__top_k": 20,
        "model__attention": "eager",
        "log__tensorboard": "true",
        "checkpoint__every": 0,
        "eval__every": 0,
    }
    _, args, _ = exported(TINY, 1, tmp_path, monkeypatch, **changes)
    # 16 prompts in mini-batches of 4: 4 optimizer steps a round, 150 rounds.
    assert (args.max_steps, args.warmup_steps, args.save_steps, args.eval_steps) == (600, 20, 600, 600)
    assert (args.lr_scheduler_type, args.optim) == ("cosine", "adamw_bnb_8bit")
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.max_grad_norm) == (0.8, 0.95, 1e-6, 0.5)
    assert (args.use_vllm, args.vllm_mode, args.vllm_gpu_memory_utilization) == (True, "colocate", 0.25)
    assert (args.vllm_enable_sleep_mode, args.vllm_max_model_length, args.top_k) == (True, 1024 + 48, 20)
    assert args.vllm_importance_sampling_correction and args.vllm_importance_sampling_mode == "token_truncate"
    assert args.vllm_importance_sampling_clip_max == 2.0
    assert args.model_init_kwargs == {"dtype": "float32", "attn_implementation": "eager"}
    assert args.report_to == ["tensorboard"]


def test_vllm_s_own_weights_of_tokens_are_off_where_the_recipe_has_none(tmp_path, monkeypatch):
    _, args, _ = exported(TINY, 1, tmp_path, monkeypatch, sampling__engine="vllm")
    assert args.vllm_importance_sampling_correction is False


def test_accelerate_s_own_parser_reads_the_launch_line():
    from accelerate.commands.launch import launch_command_parser

    for overrides in ({}, {"train.parallel": "fsdp2"}):
        config = load_config(PAPER / "real_7b_deepscaler.toml", overrides)
        program, verb, *words = shlex.split(export_trl(config, Machines(8, 2)).command)
        assert (program, verb) == ("accelerate", "launch")
        args = launch_command_parser().parse_args(["0" if word == "$RANK_OF_NODE" else word for word in words])
        assert (args.num_processes, args.num_machines, args.mixed_precision) == (16, 2, "bf16")
        assert (args.training_script, args.use_fsdp) == ("train.py", bool(overrides))


def test_prompts_are_those_of_our_trainer_and_too_long_ones_are_left_out(tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}="
    tokenizer.save_pretrained(tmp_path / "chat")
    character_tokenizer().save_pretrained(tmp_path / "plain")
    for name in ("chat", "plain"):
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "1+1+1+1+1+1+1+1", "answer": ["8", "8.0"]}]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "set.jsonl"), "eval": [str(tmp_path / "set.jsonl")]}
    whole = prompt_dataset(str(tmp_path / "chat"), **data)
    assert whole["prompt"] == [[{"role": "user", "content": row["problem"]}] for row in rows]
    assert whole["answer"] == [["2"], ["8", "8.0"]]
    # "1+1=" has 4 tokens.
    assert len(prompt_dataset(str(tmp_path / "chat"), max_prompt_tokens=4, **data)) == 1
    assert len(eval_datasets(str(tmp_path / "chat"), max_prompt_tokens=4, **data)[data["eval"][0]]) == 1
    plain = prompt_dataset(str(tmp_path / "plain"), **data)
    tokenizer = load_tokenizer(str(tmp_path / "plain"))
    problems = load_problems(data["train"]).problems
    section = load_config(TINY).data
    ours = [list(prompt.token_ids) for prompt in render_prompts(problems, tokenizer, section).prompts]
    assert tokenizer(text=list(plain["prompt"]))["input_ids"] == ours


def test_a_generated_task_needs_a_number_of_problems(tiny_folder):
    with pytest.raises(ConfigError, match="problems ="):
        prompt_dataset(str(tiny_folder), train="addition")
    first, longer = (prompt_dataset(str(tiny_folder), train="addition", problems=count) for count in (3, 5))
    assert longer["prompt"][:3] == first["prompt"][:]
    with pytest.raises(ConfigError, match="trian"):
        prompt_dataset(str(tiny_folder), trian="addition")


def test_an_exported_script_trains_to_its_end(tmp_path):
    """2 rounds of 4 prompts in mini-batches of 2: 4 optimizer steps; evaluated before and after each round."""
    overrides = {
        "train.steps": 2,
        "train.prompts_per_step": 4,
        "train.mini_batch_prompts": 2,
        "eval.every": 1,
        "eval.problems": 8,
        "model.device": "cpu",
        "run.dir": str(tmp_path / "run"),
    }
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    export = [sys.executable, "-m", "realrl", "export", "trl", str(TINY), "--gpus-per-node", "1", "-o", str(tmp_path / "out")]
    command = subprocess.run([*export, *words], check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert (checkpoint.name, state["global_step"]) == ("checkpoint-4", 4)
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert all(entry["learning_rate"] == load_config(TINY).optim.lr for entry in steps)
    evaluated = [entry for entry in state["log_history"] if "eval_column_addition_runtime" in entry]
    assert [entry["step"] for entry in evaluated] == [0, 2, 4]
    # 8 problems, one sample of each.
    assert all(entry["eval_reward"] * 8 % 1 == 0 for entry in evaluated)
