"""RealTrainer with rollouts from vLLM in the training process, against plain autograd in float64: `make test-vllm`.

TRL lets vLLM choose its precision, bfloat16, so that its log-probabilities differ from the policy's and the correction for that
shows. The reference takes token ids, vLLM's log-probabilities and weights from a run and rebuilds everything else.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

try:
    # Not vllm alone: without vLLM that name finds this folder.
    import vllm.version  # noqa: F401
except ImportError:
    pytest.skip("vLLM is not installed in this environment; run `make test-vllm`", allow_module_level=True)
pytest.importorskip("trl", reason="TRL is not installed in this environment; run `make test-vllm`")

import torch
from transformers import AutoTokenizer
from trl_probe import PROMPTS, fresh_model, reward_of
from vllm_models import make_model

from realrl.models.adder import character_tokenizer

RUN = Path(__file__).parents[1] / "support" / "trl_vllm_run.py"
TAU = 0.5
# Groups of 4, two samplings of 16 rollouts, two optimizer steps on each, the second of which is off-policy.
SAMPLED = {"use_vllm": True, "vllm_mode": "colocate", "num_iterations": 2, "max_steps": 4, "learning_rate": 3e-3}
CASES = {
    "no correction, groups cut": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "vllm_importance_sampling_correction": False,
    },
    "each token weighed, groups cut, lora": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.0,
        "lora": True,
    },
    "rollouts masked, two processes, whole groups": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "vllm_importance_sampling_clip_max": 1.0,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Like `tiny_folder`, with heads as wide as vLLM's CPU attention needs."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(tied=False).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def token_logprobs(model, prompt, completion):
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def correction(old, sampled, case):
    """TRL's weight of each token's gradient: π_old/π_vLLM of the token, cut at the bound; of the rollout, 0 over the bound."""
    if not case.get("vllm_importance_sampling_correction", True):
        return torch.ones_like(old)
    bound = case["vllm_importance_sampling_clip_max"]
    if case.get("vllm_importance_sampling_mode") == "token_truncate":
        return torch.exp(old - sampled).clamp(max=bound)
    ratio = torch.exp((old - sampled).sum())
    return torch.full_like(old, ratio if ratio <= bound else 0.0)


def reference(folder, step, ranks, number, case):
    """Of an optimizer step: gradient by name, loss, the tokens' corrections, and the largest gap of vLLM's log-probabilities
    to those of the weights at this sampling and at the first."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {tuple(tokenizer(prompt)["input_ids"]): prompt for prompt in PROMPTS}
    model, old, start = (fresh_model(str(folder), case.get("lora", False)).double() for _ in range(3))
    model.load_state_dict(step["now"])
    old.load_state_dict(step["old"])
    start.load_state_dict(ranks[0]["steps"][0]["old"])
    groups, corrections, gaps = defaultdict(list), [], []
    for rank in ranks:
        for (prompt, completion, group), sampled in zip(*(rank["steps"][number][k] for k in ("rows", "sampled")), strict=True):
            sampled = torch.tensor(sampled, dtype=torch.float64)
            with torch.no_grad():
                before, first = token_logprobs(old, prompt, completion), token_logprobs(start, prompt, completion)
            gaps.append(torch.stack([(sampled - before).abs().max(), (sampled - first).abs().max()]))
            reward = reward_of(texts[tuple(prompt)], completion)
            if reward is None:
                continue
            policy = token_logprobs(model, prompt, completion)
            corrections.append(correction(before, sampled, case))
            policy.register_hook(corrections[-1].mul)
            groups[group].append(((policy - before).mean(), reward))
    loss = torch.zeros((), dtype=torch.float64)
    for group in groups.values():
        right, wrong = ([torch.exp(sign * s / TAU) for s, r in group if r == label] for sign, label in ((-1, 1), (1, 0)))
        if right and wrong:
            loss = loss + torch.log(1 + sum(right)) + torch.log(1 + sum(wrong))
    loss = loss / len(groups)
    loss.backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradient, loss.item(), torch.cat(corrections), torch.stack(gaps).amax(dim=0)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_exact_on_vllm_s_rollouts(name, folder, tmp_path):
    case = SAMPLED | CASES[name]
    processes = 2 if "two processes" in name else 1
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(RUN), str(folder), str(tmp_path), json.dumps(case)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]
    losses = [entry["loss"] for entry in ranks[0]["log"] if "loss" in entry]
    corrections, moved = [], 0.0
    for number, step in enumerate(ranks[0]["steps"]):
        assert sum(len(rank["steps"][number]["rows"]) for rank in ranks) == 16
        gradient, loss, factors, (gap, gap_to_start) = reference(folder, step, ranks, number, case)
        expected = torch.cat([value.flatten() for value in gradient.values()])
        for rank in ranks:
            found = torch.cat([rank["steps"][number]["gradient"][name].flatten() for name in gradient]).double()
            assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert losses[number] == pytest.approx(loss, rel=1e-4, abs=1e-5)
        assert expected.norm() > 1e-3
        # vLLM samples with the weights of this moment, apart from bfloat16.
        assert gap < 0.1
        corrections.append(factors)
        moved = gap_to_start
    assert len(ranks[0]["steps"]) == 4
    # The weights of the second sampling are far from those of the first.
    assert moved > 0.5
    if case.get("vllm_importance_sampling_correction", True):
        cut = 1.0 if "vllm_importance_sampling_mode" in case else 0.0
        assert 0.1 < (torch.cat(corrections) == cut).float().mean() < 0.9
