"""Runs verl's own `main_ppo` on CPU with the harness: a tiny model, four prompts of one digit, two FSDP2 ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas
import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from realrl.models.adder import character_tokenizer

# Of torch's AdamW, with weight decay 0.01 and gradients clipped at norm 1. Its default eps of 1e-8 would blow the rounding of
# gradients near 0 up to a share of the learning rate.
LR, EPS = 1e-3, 1e-6
LIMIT_S = 900
REWARD = Path(__file__).with_name("verl_rewards.py")


def make_inputs(folder: Path) -> None:
    """`model/`, a random Llama whose tokenizer has a chat template, and `prompts.parquet` in verl's form."""
    tokenizer = character_tokenizer()
    # verl asks every tokenizer for the tokens that end a turn of Qwen's.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "digits",
            "prompt": [{"role": "user", "content": f"{a}+{b}="}],
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"index": 10 * a + b},
        }
        for a in range(5)
        for b in range(5)
    ]
    pandas.DataFrame(rows).to_parquet(folder / "prompts.parquet")


@dataclass
class VerlRun:
    """One command: `folder` has the inputs, `name` a subfolder for what it writes; `options` are overrides of verl's."""

    folder: Path
    name: str
    options: dict[str, object] = field(default_factory=dict)
    ranks: int = 2

    @property
    def out(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> str:
        return (self.out / "log.txt").read_text()

    @property
    def steps(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "steps.jsonl").read_text().splitlines()]

    def start(self) -> subprocess.Popen:
        self.out.mkdir(exist_ok=True)
        environment = os.environ | {
            "VERL_PLATFORM": "cpu",
            "REALRL_RECORD_DIR": str(self.out),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        overrides = [f"{key}={value}" for key, value in (self._defaults() | self.options).items()]
        with (self.out / "log.txt").open("a") as log:
            command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.out)

    def finish(self, process: subprocess.Popen) -> int:
        """Wait for its end; kills it with all its children after LIMIT_S."""
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            raise AssertionError(f"{self.name} still ran after {LIMIT_S} s:\n{self.log[-4000:]}") from None

    def run(self) -> "VerlRun":
        code = self.finish(self.start())
        assert code == 0, f"{self.name} ended with {code}:\n{self.log[-6000:]}"
        return self

    def run_until(self, reached) -> "VerlRun":
        """Start it and kill -9 all of it once `reached()`."""
        process, deadline = self.start(), time.monotonic() + LIMIT_S
        while not reached():
            assert process.poll() is None, f"{self.name} ended before it was killed:\n{self.log[-6000:]}"
            assert time.monotonic() < deadline, self.log[-4000:]
            time.sleep(0.05)
        kill_tree(process)
        return self

    def final_weights(self, step: int) -> dict[str, torch.Tensor]:
        """The whole weights of a checkpoint of verl's, put together from the shards of its ranks."""
        folder = self.out / "checkpoints" / f"global_step_{step}" / "actor"
        shards = [
            torch.load(folder / f"model_world_size_{self.ranks}_rank_{rank}.pt", map_location="cpu", weights_only=False)
            for rank in range(self.ranks)
        ]
        whole = {}
        for name, first in shards[0].items():
            (placement,) = first._spec.placements
            parts = [shard[name]._local_tensor for shard in shards]
            whole[name] = torch.cat(parts, dim=placement.dim) if placement.is_shard() else parts[0]
        return whole

    def _defaults(self) -> dict[str, object]:
        model, actor, rollout = (f"actor_rollout_ref.{part}" for part in ("model", "actor", "rollout"))
        exact = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
        return {
            "trainer.v1.trainer_mode": "recorded_sync",
            "algorithm.adv_estimator": "real",
            f"{actor}.policy_loss.loss_mode": "real",
            "data.train_files": self.folder / "prompts.parquet",
            "data.val_files": self.folder / "prompts.parquet",
            "data.train_batch_size": 8,
            "data.max_prompt_length": 16,
            "data.max_response_length": 6,
            "data.dataloader_num_workers": 0,
            f"{model}.path": self.folder / "model",
            f"{model}.use_remove_padding": False,
            f"+{model}.override_config.attn_implementation": "eager",
            f"{model}.enable_gradient_checkpointing": False,
            f"{actor}.strategy": "fsdp2",
            f"{actor}.use_torch_compile": False,
            f"{actor}.ppo_mini_batch_size": 4,
            f"{actor}.ppo_micro_batch_size_per_gpu": 2,
            f"{actor}.optim.lr": LR,
            f"{actor}.optim.override_optimizer_config": f"{{eps: {EPS}}}",
            f"{actor}.fsdp_config.model_dtype": "fp32",
            f"{actor}.fsdp_config.use_torch_compile": False,
            f"+{actor}.fsdp_config.mixed_precision": exact,
            f"{rollout}.name": "tinyhf",
            f"{rollout}.n": 4,
            f"{rollout}.tensor_model_parallel_size": 1,
            f"{rollout}.log_prob_micro_batch_size_per_gpu": 4,
            f"{rollout}.agent.num_workers": 1,
            f"{rollout}.load_format": "auto",
            "reward.custom_reward_function.path": REWARD,
            "reward.num_workers": 1,
            "trainer.device": "cpu",
            "trainer.n_gpus_per_node": self.ranks,
            "trainer.nnodes": 1,
            "trainer.logger": "[console]",
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.save_freq": 1,
            "trainer.total_training_steps": 1,
            "trainer.default_local_dir": self.out / "checkpoints",
            "+ray_kwargs.ray_init.num_gpus": self.ranks,
            # Logical: with fewer, actors wait for each other without a word.
            "ray_kwargs.ray_init.num_cpus": 32,
            "+ray_kwargs.ray_init.include_dashboard": False,
            "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        }


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to the command and everything that it started, by process id."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
