"""verl's own `main_ppo` with our objectives: Ray, two FSDP2 ranks, compared with a reference at every optimizer step.

REALRL_RECORD=FOLDER keeps the plain run's model, recorded steps and final weights for a replay elsewhere.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

if find_spec("transfer_queue") is None or find_spec("realrl_verl_harness") is None:
    pytest.skip("verl or its CPU harness is not installed in this environment; run `make test-verl`", allow_module_level=True)

import verl_reference
from batches import recorded_batch
from transformers import AutoModelForCausalLM
from verl_run import EPS, LR, VerlRun, make_inputs

from realrl.objectives import build_objective
from realrl.training.gradient import GradientSettings, MiniBatchGradient

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """Two mini-batches, two epochs: four optimizer steps on the rollouts of one round."""
    run = VerlRun(folder, "plain", {f"{ACTOR}.ppo_epochs": 2}).run()
    if keep := os.environ.get("REALRL_RECORD"):
        shutil.copytree(folder / "model", Path(keep) / "model", dirs_exist_ok=True)
        shutil.copy(run.out / "steps.jsonl", keep)
        save_file(run.final_weights(1), Path(keep) / "final.safetensors")
    return run


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert worst < 1e-5, worst


def assert_matches(run, steps, final_round, loss, warmup=0):
    measured, weights = verl_reference.replay(run.folder, steps, loss, LR, EPS, warmup)
    for step, (value, norm) in zip(steps, measured, strict=True):
        assert step["loss"] == pytest.approx(value, rel=1e-5, abs=1e-7)
        assert step["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert_same_weights(run.final_weights(final_round), weights)


def test_every_step_is_the_objectives_own(plain):
    assert [step["fresh"] for step in plain.steps] == [True, False, False, False]
    assert max(step["abs_s_max"] for step in plain.steps) > 0.1
    assert_matches(plain, plain.steps, 1, verl_reference.real)
    # What was trained on is in verl's own metrics.
    for name in ("real/loss", "real/abs_s_max", "real/groups/degenerate", "real/extra_passes:3", "real/optimizer_steps:4"):
        assert name in plain.log


def test_our_trainer_reaches_the_same_weights(plain):
    model = AutoModelForCausalLM.from_pretrained(plain.folder / "model", dtype=torch.float32)
    gradient = MiniBatchGradient(model, build_objective({"type": "real"}), GradientSettings(temperature=1.0, budget=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, weight_decay=0.01)
    batches = [recorded_batch(step) for step in plain.steps]
    old = [gradient.token_logprobs(batch, torch.ones(len(batch), dtype=torch.bool)) for batch in batches]
    for step, batch, old_NT in zip(plain.steps, batches, old, strict=True):
        optimizer.zero_grad()
        gradient.backward(batch, None if step["fresh"] else old_NT, None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert_same_weights(plain.final_weights(1), model.state_dict())


def test_ragged_groups_a_failing_reward_and_a_killed_run(folder):
    """Shuffled, dynamic micro-batches, padding rows; killed in the second round and resumed from the first one's checkpoint."""
    run = VerlRun(
        folder,
        "killed",
        {
            f"{ACTOR}.ppo_epochs": 2,
            f"{ACTOR}.shuffle": True,
            f"{ACTOR}.use_dynamic_bsz": True,
            f"{ACTOR}.ppo_max_token_len_per_gpu": 256,
            f"{ROLLOUT}.log_prob_use_dynamic_bsz": True,
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 256,
            f"{ACTOR}.optim.lr_warmup_steps": 1,
            "+reward.custom_reward_function.reward_kwargs.fail_on": 7,
            "trainer.total_training_steps": 2,
        },
    )
    recorded = run.out / "steps.jsonl"
    run.run_until(lambda: recorded.exists() and recorded.read_text().count("\n") > 4)
    before = [step for step in run.steps if step["round"] == 1]
    assert len(run.steps) > len(before)
    recorded.unlink()
    run.run()
    steps = before + run.steps
    assert [step["round"] for step in steps] == [1] * 4 + [2] * 4

    sizes = [step["groups"].count(group) for step in steps for group in set(step["groups"])]
    assert min(sizes) < 4
    assert "this grader cannot read a 7" in run.log
    assert any(step["rows"] > taught(step) for step in steps), "no step had padding rows"
    assert steps[0]["prompts"] != steps[2]["prompts"], "the second epoch was not shuffled anew"
    # The learning rate warms up over the four optimizer steps of one round.
    assert_matches(run, steps, 2, verl_reference.real, warmup=4)


def taught(step) -> int:
    """How many rollouts lie in groups with a right and a wrong one."""
    pairs = list(zip(step["groups"], step["rewards"], strict=True))
    mixed = {group for group, _ in pairs if len({reward for other, reward in pairs if other == group}) == 2}
    return sum(group in mixed for group, _ in pairs)


def test_an_additive_objective_with_a_penalty_to_the_reference(folder):
    run = VerlRun(
        folder,
        "grpo",
        {
            "+algorithm.real.type": "grpo",
            "+algorithm.real.kl.target": "ref",
            "+algorithm.real.kl.coef": 0.5,
            f"{ACTOR}.use_kl_loss": True,
            f"{ACTOR}.kl_loss_coef": 0,
            "+actor_rollout_ref.ref.fsdp_config.mixed_precision": "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 4,
        },
    ).run()
    assert len(run.steps) == 2
    assert_matches(run, run.steps, 1, verl_reference.grpo_with_kl_to_the_reference)


def test_asynchronous_sampling_with_a_penalty_to_the_sampler(folder):
    run = VerlRun(
        folder,
        "bce",
        {
            "trainer.v1.trainer_mode": "recorded_colocate_async",
            "+algorithm.real.type": "bce",
            "+algorithm.real.degenerate_groups": "use",
            "+algorithm.real.kl.target": "old",
            "+algorithm.real.kl.coef": 0.5,
        },
    ).run()
    assert len(run.steps) == 2
    assert_matches(run, run.steps, 1, verl_reference.bce_with_kl_to_the_sampler)
