"""Exported commands read by verl's own configuration code, and exported data by its data set."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed: pip install 'realrl[verl]'")

from hydra import compose, initialize_config_module  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from verl.trainer.ppo.utils import need_critic, need_reference_policy  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass, validate_config  # noqa: E402
from verl.utils.dataset.rl_dataset import RLHFDataset  # noqa: E402

from realrl.config import load_config  # noqa: E402
from realrl.data import load_problems, render_prompts  # noqa: E402
from realrl.integrations.export import Machines, export_verl  # noqa: E402
from realrl.integrations.verl.checks import check_config  # noqa: E402
from realrl.integrations.verl.reward import accepted_answers  # noqa: E402
from realrl.models import load_tokenizer  # noqa: E402

ROOT = Path(__file__).parents[2]
# recipes/study holds sweeps.
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.parent.name not in ("study", "base"))
TINY = ROOT / "recipes" / "tiny.toml"
PAPER = ROOT / "recipes" / "paper"


def composed(folder, path, machines=Machines(4), **overrides):  # noqa: B008
    """The recipe, and verl's configuration from the words that bash makes of the script: an unknown key would fail."""
    config = load_config(path, {key.replace("__", "."): str(value) for key, value in overrides.items()})
    (folder / "train.sh").write_text(export_verl(config, machines).script)
    stand_in = folder / "bin" / "python"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    printed = subprocess.run(["bash", str(folder / "train.sh")], env=environment, capture_output=True, text=True, check=True)
    _, module, *words = printed.stdout.removesuffix("\0").split("\0")
    assert module == "verl.trainer.main_ppo"
    # The empty words that the comments between the options leave.
    assert "" not in words
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        return config, compose("ppo_trainer", overrides=words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_verl_reads_every_recipe_with_the_same_arithmetic(path, tmp_path):
    config, found = composed(tmp_path, path)
    validate_config(found, use_reference_policy=need_reference_policy(found), use_critic=need_critic(found))
    objective = check_config(found)
    assert objective.model_dump() == config.objective.model_dump()
    assert need_reference_policy(found) == objective.needs_ref
    actor, rollout = found.actor_rollout_ref.actor, found.actor_rollout_ref.rollout
    size, mini, round_ = config.sampling.group_size, config.train.mini_batch_prompts, config.train.prompts_per_step
    assert rollout.n * actor.ppo_mini_batch_size == size * mini
    assert found.data.train_batch_size * rollout.n == size * round_
    # verl counts sampling rounds.
    updates = found.data.train_batch_size // actor.ppo_mini_batch_size * actor.ppo_epochs
    assert found.trainer.total_training_steps * updates * mini == config.train.steps * round_
    assert actor.optim.lr == config.optim.lr
    assert (actor.optim.weight_decay, list(actor.optim.betas)) == (config.optim.weight_decay, list(config.optim.betas))
    assert actor.optim.override_optimizer_config.eps == config.optim.eps
    assert (rollout.temperature, rollout.top_p) == (config.sampling.temperature, config.sampling.top_p)
    longest = found.data.max_prompt_length + found.data.max_response_length
    assert actor.ppo_max_token_len_per_gpu >= longest
    assert (found.trainer.n_gpus_per_node, found.trainer.nnodes) == (4, 1)
    omega_conf_to_dataclass(rollout)


def test_the_paper_s_run_has_its_numbers(tmp_path):
    """128 prompts a round in mini-batches of 32, 8 rollouts each, 1,400 rounds (Section 5.1)."""
    _, found = composed(tmp_path, PAPER / "real_1.5b_deepscaler.toml", Machines(8, 2))
    actor, rollout, data = found.actor_rollout_ref.actor, found.actor_rollout_ref.rollout, found.data
    assert (data.train_batch_size, actor.ppo_mini_batch_size, rollout.n, found.trainer.total_training_steps) == (
        128,
        32,
        8,
        1400,
    )
    assert (actor.optim.lr, rollout.temperature, data.max_response_length) == (2e-6, 0.6, 8192)
    assert (rollout.val_kwargs.n, rollout.val_kwargs.top_p, rollout.val_kwargs.do_sample) == (16, 0.95, True)
    assert (found.trainer.test_freq, found.trainer.save_freq, found.trainer.max_actor_ckpt_to_keep) == (100, 50, 3)
    assert (actor.fsdp_config.model_dtype, actor.fsdp_config.get("mixed_precision")) == ("fp32", None)
    assert (found.trainer.nnodes, found.trainer.n_gpus_per_node) == (2, 8)
    kwargs = found.reward.custom_reward_function.reward_kwargs
    assert (kwargs.type, kwargs.require_boxed, kwargs.require_think_close) == ("math", True, True)
    assert [Path(name).name for name in data.val_files][:2] == ["eval_aime24.parquet", "eval_aime25.parquet"]
    assert Path(data.train_files) == tmp_path / "train.parquet"


def test_options_away_from_their_defaults(tmp_path):
    changes = {
        "optim__schedule": "cosine",
        "optim__warmup_steps": 5,
        "optim__max_grad_norm": 0.5,
        "train__micro_batch_tokens": 100,
        "sampling__engine": "vllm",
        "sampling__gpu_memory": 0.25,
        "sampling__top_k": 20,
        "sampling__steps_ahead": 1,
        "model__attention": "sdpa",
        "model__lora": '{ rank = 4, alpha = 8, targets = ["q_proj", "v_proj"] }',
        "log__tensorboard": "true",
        "data__eval": "[]",
        "objective__kl": '{ target = "ref", coef = 0.01, estimator = "k2" }',
        "run__seed": 7,
    }
    config, found = composed(tmp_path, TINY, **changes)
    assert check_config(found).model_dump() == config.objective.model_dump()
    actor, rollout, model = (found.actor_rollout_ref[part] for part in ("actor", "rollout", "model"))
    assert (actor.optim.lr_scheduler_type, actor.optim.lr_warmup_steps, actor.optim.clip_grad) == ("cosine", 5, 0.5)
    # Raised to the longest sequence: 1,024 + 48.
    assert actor.ppo_max_token_len_per_gpu == 1072
    assert (rollout.gpu_memory_utilization, rollout.free_cache_engine, rollout.top_k) == (0.25, False, 20)
    assert found.trainer.v1.trainer_mode == "real_colocate_async"
    assert (model.override_config.attn_implementation, model.use_remove_padding) == ("sdpa", False)
    assert (model.lora_rank, model.lora_alpha, list(model.target_modules)) == (4, 8, ["q_proj", "v_proj"])
    assert (found.trainer.test_freq, found.trainer.val_before_train) == (-1, False)
    assert list(found.trainer.logger) == ["console", "tensorboard"]
    assert (found.data.seed, actor.data_loader_seed, rollout.seed) == (7, 7, 7)
    # float32 through and through; verl's FSDP would compute in bfloat16 by itself.
    assert actor.fsdp_config.mixed_precision.param_dtype == "fp32"
    assert (actor.fsdp_config.model_dtype, rollout.dtype) == ("fp32", "float32")


def test_awkward_values_reach_verl_as_they_are(tmp_path):
    folder, pattern = tmp_path / "a (b), [c]", r".*\.(q|v)_proj\\"
    folder.mkdir()
    path = folder / "it's $HOME" / "2026"
    _, found = composed(folder, TINY, run__dir=f'"{path}"', model__lora=f"{{ targets = '{pattern}' }}")
    assert found.trainer.default_local_dir == str(path / "checkpoints")
    assert found.trainer.experiment_name == "2026"
    assert found.actor_rollout_ref.model.target_modules == pattern
    assert found.data.train_files == str(folder / "train.parquet")


def test_verl_s_data_set_gives_the_prompts_of_our_trainer(tmp_path):
    sums = ["1+2=", "11+22=", "111+222="]
    rows = [{"problem": text, "answer": [str(eval(text[:-1])), "n"]} for text in sums]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # One token for each character after the one that begins: the third problem has 9.
    config, found = composed(tmp_path, TINY, data__train=tmp_path / "set.jsonl", data__eval="[]", data__max_prompt_tokens=7)
    export_verl(config, Machines(4)).write(tmp_path / "out")
    tokenizer = load_tokenizer(config.model.path)
    ours = render_prompts(load_problems(config.data.train).problems, tokenizer, config.data).prompts
    tokenizer.chat_template = found.actor_rollout_ref.model.custom_chat_template
    kept = RLHFDataset(str(tmp_path / "out" / "train.parquet"), tokenizer, found.data)
    assert len(kept) == len(ours) == 2
    for row, prompt, gold in zip(kept, ours, ("3", "33"), strict=True):
        text = tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, tokenize=False)
        assert tuple(tokenizer.encode(text, add_special_tokens=False)) == prompt.token_ids
        assert accepted_answers(row["reward_model"]["ground_truth"]) == (gold, "n")
