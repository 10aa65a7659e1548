"""One set of rollouts, four optimizer steps: verl's run with our trainer, TRL's with RealTrainer, and ours end alike.

`make test-integrations` records the rollouts and final weights of a verl run (two FSDP2 ranks) and names the folder in
REALRL_RECORD.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("trl", reason="TRL is not installed: pip install 'realrl[trl]'")

from batches import recorded_batch  # noqa: E402
from datasets import Dataset  # noqa: E402

from realrl.integrations.trl import RealConfig, RealTrainer  # noqa: E402
from realrl.objectives import build_objective  # noqa: E402
from realrl.training.gradient import GradientSettings, MiniBatchGradient  # noqa: E402

RECORD = os.environ.get("REALRL_RECORD", "")
pytestmark = pytest.mark.skipif(not RECORD, reason="no recorded verl run: make test-integrations makes one")
GROUP = 4


@pytest.fixture(scope="module")
def steps():
    lines = (Path(RECORD) / "steps.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    # Two mini-batches, twice each.
    assert len(steps) == 4 and steps[0]["responses"] == steps[2]["responses"] != steps[1]["responses"]
    return steps


def start():
    model = AutoModelForCausalLM.from_pretrained(Path(RECORD) / "model", dtype=torch.float32)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)


def assert_equal_to_verl_s(model):
    theirs, before = load_file(Path(RECORD) / "final.safetensors"), start()[0].state_dict()
    moved = 0.0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
        moved = max(moved, (value - before[name]).abs().max().item())
    assert moved > 1e-3


# Whole groups in a micro-batch, and groups cut by it.
@pytest.mark.parametrize("rows", [4, 2])
def test_trl_ends_at_verl_s_weights(rows, steps, tmp_path):
    first, second = steps[:2]
    prompts = [ids for step in (first, second) for ids in step["prompts"]]
    responses = [ids for step in (first, second) for ids in step["responses"]]
    rewards = [reward for step in (first, second) for reward in step["rewards"]]

    def recorded(texts, trainer):
        return {
            "prompt_ids": prompts,
            "completion_ids": responses,
            "logprobs": [[0.0] * len(ids) for ids in responses],
            "right": rewards,
        }

    model, optimizer = start()
    trainer = RealTrainer(
        model,
        lambda right, **_: right,
        RealConfig(
            str(tmp_path),
            num_generations=GROUP,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=16 // rows,
            steps_per_generation=32 // rows,
            num_iterations=2,
            max_steps=4,
            max_grad_norm=1.0,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(len(prompts) // GROUP)]}),
        processing_class=AutoTokenizer.from_pretrained(Path(RECORD) / "model"),
        rollout_func=recorded,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    trainer.train()
    assert_equal_to_verl_s(model)


def test_our_trainer_ends_at_verl_s_weights(steps):
    model, optimizer = start()
    step = MiniBatchGradient(
        model, build_objective({"type": "real"}), GradientSettings(temperature=1.0, budget=40, route="two_pass")
    )
    batches = [recorded_batch(recorded) for recorded in steps]
    old = [step.token_logprobs(batch, torch.ones(len(batch), dtype=torch.bool)) for batch in batches]
    for batch, old_NT in zip(batches, old, strict=True):
        step.backward(batch, old_NT, None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert_equal_to_verl_s(model)
