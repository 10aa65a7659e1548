"""RealTrainer inside TRL against plain autograd: every rollout of an optimizer step at once, unpadded, in float64.

The reference takes token ids and weights from a run and rebuilds everything else: rewards, groups, old log-probabilities, loss.
"""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install 'realrl[trl]'")

import forked  # noqa: E402
from batches import batch_of  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from trl import GRPOConfig  # noqa: E402
from trl_probe import GROUP, PROMPTS, fresh_model, reward_of, run, run_all  # noqa: E402

from realrl.errors import ConfigError, EngineError, TrainingError  # noqa: E402
from realrl.integrations import engines  # noqa: E402
from realrl.integrations.trl import RealConfig, RealTrainer, verifier_reward  # noqa: E402
from realrl.integrations.trl.trainer import _loss_inputs  # noqa: E402
from realrl.objectives import build_objective  # noqa: E402
from realrl.training.gradient import GradientSettings, MiniBatchGradient  # noqa: E402
from realrl.types import Batch  # noqa: E402


def split(rows, accumulation=1, per_generation=None, iterations=1, generations=2, **options):
    """Options of RealConfig for `generations` samplings; `rows` of a micro-batch and process."""
    per_generation = per_generation or accumulation
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": per_generation,
        "num_iterations": iterations,
        "max_steps": generations * iterations * per_generation // accumulation,
        **options,
    }


ONE_PROCESS = {
    "one micro-batch": split(16, iterations=3),
    "whole groups in a micro-batch": split(4, accumulation=4, iterations=2),
    "two steps a generation, groups cut": split(2, accumulation=4, per_generation=8, iterations=2),
    "micro-batches of three": split(3, accumulation=4, iterations=3),
    "fresh only, groups cut": split(2, accumulation=8),
    "lora": split(2, accumulation=4, iterations=2, lora=True, learning_rate=3e-3),
    "no anchor": split(2, accumulation=4, iterations=2, objective={"anchor": False, "tau": 0.3}),
    "bce": split(2, accumulation=4, iterations=2, objective={"type": "bce"}),
    "real with kl to the reference": split(
        2, accumulation=4, iterations=2, objective={"kl": {"target": "ref", "coef": 0.5, "estimator": "k3"}}
    ),
    "grpo": split(2, accumulation=4, iterations=2, objective={"type": "grpo", "kl": {"target": "none"}}),
    "gspo": split(2, accumulation=4, iterations=2, objective={"type": "gspo"}),
    "trpa": split(2, accumulation=4, iterations=2, objective={"type": "trpa", "kl": {"target": "none"}}),
    "dapo": split(2, accumulation=4, iterations=2, objective={"type": "dapo"}),
    "disco, whole groups in a micro-batch": split(4, accumulation=2, iterations=3, objective={"type": "disco", "tau": 0.5}),
    "disco, groups cut": split(2, accumulation=4, iterations=3, objective={"type": "disco", "score": "Lratio", "beta": 1e5}),
    "truncated completions masked": split(2, accumulation=4, iterations=2, mask_truncated_completions=True),
}
TWO_PROCESSES = {
    "two processes, groups cut": split(2, accumulation=2, per_generation=4, iterations=2),
    "a group on both processes": split(3, accumulation=2, iterations=2),
    "two processes, whole groups": split(4, accumulation=2, iterations=2),
}


def token_logprobs(model, prompt, completion):
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def naive_coupled_loss(objective, group):
    """The loss of one group from [(policy, old, reference, reward)], from the papers' formulas; trpa: a sum over pairs."""
    kind, tau = objective.get("type", "real"), objective.get("tau", 0.5)
    scores = {
        "logL": lambda p, o, f: p.mean(),
        "Lratio": lambda p, o, f: (p - o).exp().mean(),
        "trpa": lambda p, o, f: (p - f).mean(),
        "disco": lambda p, o, f: p.mean(),
    }
    of = scores.get(objective.get("score", kind), lambda p, o, f: (p - o).mean())
    right, wrong = ([of(p, o, f) for p, o, f, r in group if r == label] for label in (1, 0))
    if not (right and wrong):
        return 0 * of(*group[0][:3])
    if kind == "trpa":
        return sum(torch.log1p(torch.exp(-2.5 * 0.1 * (better - worse))) for better in right for worse in wrong)
    if kind == "bce":
        return sum(torch.log1p(torch.exp(-s / tau)) for s in right) + sum(torch.log1p(torch.exp(s / tau)) for s in wrong)
    if kind == "disco":
        tau = 1.0 if objective.get("score") == "Lratio" else tau
        return tau * torch.stack(wrong).div(tau).exp().mean().log() - torch.stack(right).mean()
    up, down = sum(torch.exp(-s / tau) for s in right), sum(torch.exp(s / tau) for s in wrong)
    if not objective.get("anchor", True):
        return torch.log(1 + up * down)
    return torch.log(1 + up) + torch.log(1 + down)


def naive_additive_loss(kind, group):
    """The sum over a group's rollouts (dapo: over their tokens) of the clipped surrogates."""
    rewards = torch.tensor([reward for _, _, _, reward in group], dtype=torch.float64)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6) if len(rewards) > 1 else 0 * rewards
    low, high = {"grpo": (0.8, 1.2), "dapo": (0.8, 1.28), "gspo": (1 - 3e-4, 1 + 4e-4)}[kind]
    total = 0.0
    for (policy, old, _, _), advantage in zip(group, advantages, strict=True):
        ratio = torch.exp((policy - old).mean() if kind == "gspo" else policy - old)
        gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        total = total - (gain.sum() if kind == "dapo" else gain.mean())
    return total


def reference_gradient(folder, step, rows, case):
    """(gradient by parameter name, loss) of all rollouts of an optimizer step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {tuple(tokenizer(prompt)["input_ids"]): prompt for prompt in PROMPTS}
    model, old, start = (fresh_model(folder, case.get("lora", False)).double() for _ in range(3))
    model.load_state_dict(step["now"])
    old.load_state_dict(step["old"])
    objective = case.get("objective", {})
    groups, tokens, rollouts, penalty = defaultdict(list), 0, 0, 0.0
    for prompt, completion, group in rows:
        reward = reward_of(texts[tuple(prompt)], completion)
        if reward is None or not completion:
            continue
        with torch.no_grad():
            before, first = token_logprobs(old, prompt, completion), token_logprobs(start, prompt, completion)
        policy = token_logprobs(model, prompt, completion)
        groups[group].append((policy, before, first, reward))
        tokens, rollouts = tokens + len(completion), rollouts + 1
        penalty = penalty + (torch.exp(first - policy) - (first - policy) - 1).mean()
    kind = objective.get("type", "real")
    if kind in ("grpo", "dapo", "gspo"):
        loss = sum(naive_additive_loss(kind, group) for group in groups.values()) / (tokens if kind == "dapo" else rollouts)
    else:
        total = sum(naive_coupled_loss(objective, group) for group in groups.values())
        pairs = sum(sum(r == 1 for *_, r in group) * sum(r == 0 for *_, r in group) for group in groups.values())
        loss = total / (max(pairs, 1) if kind == "trpa" else len(groups))
    if kind == "disco":
        kl = sum((old - policy).sum() for group in groups.values() for policy, old, _, _ in group) / tokens
        loss = loss + objective.get("beta", 1e3) / 2 * (kl - 1e-4).clamp(min=0) ** 2
    if "kl" in objective and objective["kl"]["target"] == "ref":
        loss = loss + objective["kl"]["coef"] * penalty / rollouts
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, loss.item()


def assert_exact(folder, out, case, logged_before=0):
    ranks = [torch.load(path, weights_only=False) for path in sorted(out.glob("rank*.pt"))]
    losses = [entry["loss"] for entry in ranks[0]["log"] if "loss" in entry][logged_before:]
    moved, taught = 0.0, 0
    for number, step in enumerate(ranks[0]["steps"]):
        rows = [row for rank in ranks for row in rank["steps"][number]["rows"]]
        gradient, loss = reference_gradient(folder, step, rows, case)
        expected = torch.cat([value.flatten() for value in gradient.values()])
        for rank in ranks:
            found = torch.cat([rank["steps"][number]["gradient"][name].flatten() for name in gradient]).double()
            assert (found - expected).norm() <= 2e-5 * expected.norm()
        assert losses[number] == pytest.approx(loss, rel=1e-4, abs=1e-5)
        taught += bool(expected.norm() > 1e-3)
        moved = max(moved, max((step["now"][name] - step["old"][name]).abs().max().item() for name in step["now"]))
    penalties = [entry["kl"] for entry in ranks[0]["log"] if "kl" in entry]
    if case.get("objective", {}).get("kl", {}).get("target") == "ref":
        # 0 at the first step, whose policy is the reference.
        assert penalties[0] == pytest.approx(0, abs=1e-6) and max(penalties) > 1e-4
    # TRL empties the mask of completions without an end token.
    emptied = any(not completion for step in ranks[0]["steps"] for _, completion, _ in step["rows"])
    assert emptied == case.get("mask_truncated_completions", False)
    # Some step has to be away from the weights that sampled, or the easy case alone was tested.
    assert moved > 1e-3 or case["num_iterations"] == 1
    assert taught >= 2


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_every_optimizer_step_has_the_exact_gradient(name, tiny_folder, tmp_path):
    case = ONE_PROCESS[name]
    run(str(tiny_folder), tmp_path, case)
    assert_exact(tiny_folder, tmp_path, case)


@pytest.fixture(scope="module")
def two_processes(tiny_folder, tmp_path_factory):
    """A folder with a folder for each case, all run by the same two processes."""
    out = tmp_path_factory.mktemp("two_processes")
    arguments = [str(tiny_folder), str(out), json.dumps(TWO_PROCESSES)]
    for rank in forked.on_ranks(2, run_all, *arguments, CUDA_VISIBLE_DEVICES=""):
        assert rank.returncode == 0, rank.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_two_processes_have_the_gradient_of_one(name, tiny_folder, two_processes):
    assert len(list((two_processes / name).glob("rank*.pt"))) == 2
    assert_exact(tiny_folder, two_processes / name, TWO_PROCESSES[name])


def test_a_resumed_run_has_exact_gradients_and_whole_groups(tiny_folder, tmp_path):
    case = split(2, accumulation=4, per_generation=8, iterations=2, generations=2)
    first = run(str(tiny_folder), tmp_path, case | {"save_strategy": "steps", "save_steps": 3, "max_steps": 3})
    saved = Path(first.args.output_dir) / "checkpoint-3"
    # In the middle of a generation: TRL samples anew.
    resumed = run(str(tiny_folder), tmp_path, case | {"resume": str(saved), "max_steps": 7})
    assert [len(step["rows"]) for step in resumed.steps] == [8] * 4
    assert_exact(tiny_folder, tmp_path, case, logged_before=3)


def test_equal_weights_to_our_own_trainer_after_four_optimizer_steps(tiny_folder, tmp_path):
    """The same rollouts through MiniBatchGradient and AdamW as `realrl train` runs them."""
    case = split(2, accumulation=4, per_generation=8, iterations=2, generations=1, learning_rate=2e-3, adam_epsilon=1e-3)
    trainer = run(str(tiny_folder), tmp_path, case)
    assert len(trainer.steps) == 4
    model = fresh_model(str(tiny_folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, eps=1e-3, weight_decay=0.0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    batches = [our_batch(step["rows"], tokenizer) for step in trainer.steps]
    step = MiniBatchGradient(
        model, build_objective({"type": "real"}), GradientSettings(temperature=1.0, budget=64, route="two_pass")
    )
    # The two optimizer steps of a generation share the weights that sampled, in both iterations over it.
    old = [step.token_logprobs(batch, torch.ones(len(batch), dtype=torch.bool)) for batch in batches]
    for batch, old_NT in zip(batches, old, strict=True):
        step.backward(batch, old_NT, None)
        optimizer.step()
        optimizer.zero_grad()
    theirs = trainer.weights()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)
    start = fresh_model(str(tiny_folder)).state_dict()
    assert max((value - start[name]).abs().max().item() for name, value in theirs.items()) > 1e-3


def our_batch(rows, tokenizer) -> Batch:
    """The rollouts of an optimizer step as `realrl train` holds them; those without a reward left out."""
    texts = {tuple(tokenizer(prompt)["input_ids"]): prompt for prompt in PROMPTS}
    rows = [row for row in rows if reward_of(texts[tuple(row[0])], row[1]) is not None]
    prompts = {group: prompt for prompt, _, group in rows}
    index = {group: place for place, group in enumerate(prompts)}
    completions = [completion for _, completion, _ in rows]
    rewards = [reward_of(texts[tuple(prompt)], completion) for prompt, completion, _ in rows]
    return batch_of(prompts.values(), completions, [index[group] for _, _, group in rows], rewards)


BAD = {
    "half a group in an optimizer step": (
        {"per_device_train_batch_size": 2, "steps_per_generation": 4},
        r"= 2 rollouts .* no multiple of num_generations = 4",
    ),
    "an optimizer step over two generations": (
        {"gradient_accumulation_steps": 4, "steps_per_generation": 6},
        r"steps_per_generation = 6 .* set steps_per_generation = 4",
    ),
    "liger": ({"use_liger_kernel": True}, "use_liger_kernel = True.*leave it out"),
    "entropy mask": ({"top_entropy_quantile": 0.2}, "top_entropy_quantile = 0.2"),
    "off-policy mask": ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold = 0.5"),
    "scaled rewards": ({"scale_rewards": "batch"}, "scale_rewards = 'batch': rewards are labels"),
    "entropy bonus": ({"entropy_coef": 0.1}, "entropy_coef = 0.1"),
    "TRL's KL": ({"beta": 0.04}, r"beta = 0.04.*'kl': \{'target': 'ref', 'coef': 0.04\}"),
    "unknown objective": ({"objective": {"type": "reall"}}, "did you mean 'real'"),
    "unknown key": ({"objective": {"tua": 0.1}}, "did you mean 'tau'"),
    "objective as text": ({"objective": "real"}, "must be a table"),
}


def config(folder, **options):
    defaults = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "num_generations": GROUP, "report_to": "none"}
    return RealConfig(**defaults | {"per_device_train_batch_size": 4} | options)


@pytest.mark.parametrize("name", BAD)
def test_refuses_with_a_remedy(name, tmp_path):
    options, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)


def test_every_fault_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError, match="use_liger_kernel.*top_entropy_quantile.*steps_per_generation"):
        config(tmp_path, use_liger_kernel=True, top_entropy_quantile=0.5, gradient_accumulation_steps=4, steps_per_generation=6)


def test_options_of_other_losses_are_said_to_have_no_effect(tmp_path):
    with pytest.warns(UserWarning, match="loss_type belongs to TRL's losses and has no effect on objective bce"):
        config(tmp_path, loss_type="dr_grpo", objective={"type": "bce"})


def test_the_objective_decides_whether_there_is_a_reference(tmp_path):
    assert config(tmp_path).beta == 0
    assert config(tmp_path, objective={"kl": {"target": "ref", "coef": 0.02}}, beta=0.02).beta == 0.02
    assert config(tmp_path, objective={"kl": {"target": "old", "coef": 0.02}}).beta == 0
    assert config(tmp_path, objective={"type": "trpa"}).beta == 1
    assert config(tmp_path, objective={"type": "grpo"}).beta == 0.001


def trainer_of(folder, out, reward, model=None, **options):
    return RealTrainer(
        model or fresh_model(str(folder)),
        reward,
        config(out, max_completion_length=4, max_steps=1, save_strategy="no", disable_tqdm=True, **options),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "answer": ["3"] * len(PROMPTS)}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def graded(completions, **_):
    return [0.25 + 0.5 * (index % 2) for index, _ in enumerate(completions)]


def test_rewards_that_are_no_labels_stop_a_run_or_are_cut_by_a_threshold(tiny_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"gave \[0.25, 0.75\].*reward_threshold"):
        trainer_of(tiny_folder, tmp_path, graded).train()
    trainer = trainer_of(tiny_folder, tmp_path, graded, reward_threshold=0.5)
    trainer.train()
    assert trainer._table["reward"].tolist() == [0.0, 1.0, 0.0, 1.0]
    # Advantages need no labels.
    trainer_of(tiny_folder, tmp_path, graded, objective={"type": "grpo"}).train()


def test_refuses_dropout_and_a_configuration_of_trl(tiny_folder, tmp_path):
    model = fresh_model(str(tiny_folder))
    model.extra = torch.nn.Dropout(0.1)
    with pytest.raises(ConfigError, match="disable_dropout"):
        trainer_of(tiny_folder, tmp_path, graded, model=model)
    with pytest.raises(ConfigError, match="needs args = RealConfig"):
        RealTrainer(str(tiny_folder), graded, GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"))


def test_vllm_s_correction_weighs_each_token_s_gradient():
    policy = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    part = {
        "completion_mask": torch.tensor([[1, 1, 0]]),
        "importance_sampling_ratio": torch.tensor([[0.5, 2.0, 9.0]]),
        "real_kept": torch.tensor([True]),
        "real_reward": torch.tensor([1.0]),
        "real_group": torch.tensor([0]),
    }
    inputs = _loss_inputs(part, policy)
    assert inputs.logprobs_policy.tolist() == policy.tolist()
    build_objective({"type": "real"}).scores(inputs).sum().backward()
    assert policy.grad.tolist() == [[0.25, 1.0, 0.0]]


def test_our_verifier_is_a_reward_function():
    reward = verifier_reward("math", column="gold", require_boxed=True)
    chats = [[{"role": "assistant", "content": text}] for text in (r"\boxed{1/2}", r"\boxed{2}", "0.5")]
    assert reward(completions=chats, gold=["0.5", ["1", "2"], "0.5"]) == [1.0, 1.0, 0.0]
    assert reward(completions=[r"\boxed{7}"], gold=["7"]) == [1.0]
    assert reward.__name__ == "verifier_math"
    with pytest.raises(ConfigError, match="no column 'gold'.*it has prompts"):
        reward(completions=["1"], prompts=["p"])
    with pytest.raises(ConfigError, match="tpye|workrs"):
        verifier_reward("math", workrs=3)


@pytest.mark.parametrize("found", ["1.99.0", "1.15.0"])
def test_an_engine_that_was_not_tested_is_refused_at_import(found, monkeypatch):
    monkeypatch.delenv("REALRL_UNTESTED_ENGINES", raising=False)
    monkeypatch.setattr(engines, "version", lambda name: found)
    with pytest.raises(EngineError, match=rf"trl {found} is installed; .* tested with 1.14.2.*pip install 'trl=="):
        engines.check_engine("trl")
    monkeypatch.setenv("REALRL_UNTESTED_ENGINES", "1")
    engines.check_engine("trl")
    monkeypatch.setattr(engines, "version", lambda name: "1.16.3")
    monkeypatch.delenv("REALRL_UNTESTED_ENGINES")
    engines.check_engine("trl")


def test_a_moved_method_is_refused_at_import():
    with pytest.raises(EngineError, match=r"has moved: .*takes \(model, inputs\)"):
        engines.check_signature("trl", RealTrainer._compute_loss, ("model", "inputs", "group"))
