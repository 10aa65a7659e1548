"""The vLLM sampler against transformers, with the CPU build of vLLM in an environment of its own: `make test-vllm`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

try:
    # Not vllm alone: without vLLM that name finds this folder.
    import vllm.version  # noqa: F401
except ImportError:
    pytest.skip("vLLM is not installed in this environment; run `make test-vllm`", allow_module_level=True)

import torch
from peft import LoraConfig
from transformers import Qwen2ForCausalLM
from vllm_models import GROUP, PROMPTS, SEEDS, gap, make_model, run

from realrl.config import parse_config
from realrl.errors import ConfigError, SamplingError
from realrl.models.adder import character_tokenizer
from realrl.sampling import SamplingParams, VLLMSampler, build_sampler, merged_weights
from realrl.sampling.hf import end_token_ids


# One engine for each model of the module: vLLM holds its memory until the process ends.
@pytest.fixture(scope="module", params=["untied", "tied"])
def pair(request):
    model = make_model(request.param == "tied")
    threads = torch.get_num_threads()
    os.environ["LOCAL_WORLD_SIZE"] = "7"
    sampler = VLLMSampler(model, character_tokenizer(), dtype=torch.float32, max_model_len=256, batch_rows=16, cuts=True)
    assert torch.get_num_threads() == threads and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert os.environ.pop("LOCAL_WORLD_SIZE") == "7" and "LD_PRELOAD" not in os.environ
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    return model, sampler


@pytest.fixture
def model(pair):
    """The model, its weights put back and pushed after the test."""
    model, sampler = pair
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield model
    model.load_state_dict(before)
    sampler.update_weights(model)


@pytest.fixture
def sampler(pair):
    return pair[1]


def test_logprobs_are_those_of_transformers_at_the_temperature(model, sampler):
    rollouts = run(sampler)
    assert [rollout.prompt_index for rollout in rollouts] == [index for index in range(len(PROMPTS)) for _ in range(GROUP)]
    assert len({rollout.token_ids for rollout in rollouts}) > len(rollouts) // 2
    assert gap(model, rollouts) < 1e-4
    assert gap(model, rollouts, temperature=1.0) > 0.1


@pytest.mark.parametrize("cut", [{"top_p": 0.5}, {"top_k": 2}])
def test_logprobs_are_those_before_the_cut(model, sampler, cut):
    params = SamplingParams(temperature=0.8, max_new_tokens=24, **cut)
    rollouts = run(sampler, params=params)
    assert {rollout.token_ids for rollout in rollouts} != {rollout.token_ids for rollout in run(sampler)}
    assert gap(model, rollouts) < 1e-4


def test_greedy_is_the_greedy_of_transformers(model, sampler):
    params = SamplingParams(temperature=0.0, max_new_tokens=12)
    rollouts = run(sampler, params=params, group_size=1, seeds=SEEDS[: len(PROMPTS)])
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        with torch.no_grad():
            expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        assert list(rollout.token_ids) == expected.tolist()
    assert gap(model, rollouts, temperature=1.0) < 1e-4


def test_draws_depend_on_the_seeds_alone(model, sampler):
    whole = [rollout.token_ids for rollout in run(sampler)]
    for prompt, own in enumerate(PROMPTS):
        rows = slice(prompt * GROUP, (prompt + 1) * GROUP)
        assert [r.token_ids for r in run(sampler, prompts=[own], seeds=SEEDS[rows])] == whole[rows]
    reversed_rows = run(sampler, prompts=PROMPTS[:1] * GROUP, seeds=SEEDS[:GROUP][::-1], group_size=1)
    assert [r.token_ids for r in reversed_rows] == whole[:GROUP][::-1]
    assert [r.token_ids for r in run(sampler, seeds=[seed + 1 for seed in SEEDS])] != whole


def test_the_trainer_s_random_numbers_are_left_alone(model, sampler):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(sampler)
    assert torch.equal(torch.rand(3), expected)


def test_stops_at_every_end_token_and_says_when_cut(model, sampler):
    ends = end_token_ids(model, character_tokenizer())
    assert len(ends) == 2
    seeds = [7 + index for index in range(len(PROMPTS) * 40)]
    rollouts = run(sampler, seeds=seeds, group_size=40, params=SamplingParams(temperature=1.5, max_new_tokens=24))
    assert {rollout.token_ids[-1] for rollout in rollouts if not rollout.truncated} == ends
    assert any(rollout.truncated for rollout in rollouts)
    for rollout in rollouts:
        assert not ends & set(rollout.token_ids[:-1])
        assert rollout.truncated == (rollout.token_ids[-1] not in ends)
        assert len(rollout.token_ids) == 24 if rollout.truncated else len(rollout.token_ids) <= 24
        assert rollout.text == character_tokenizer().decode(rollout.token_ids, skip_special_tokens=True)
    # An end token in the last place that the limit allows is an end, no cut.
    index, ended = next((i, r) for i, r in enumerate(rollouts) if not r.truncated and len(r.token_ids) > 1)
    params = SamplingParams(temperature=1.5, max_new_tokens=len(ended.token_ids))
    prompt = PROMPTS[ended.prompt_index]
    assert run(sampler, prompts=[prompt], seeds=[seeds[index]], group_size=1, params=params)[0].truncated is False


def test_every_rollout_is_reported_once_while_others_still_run(model, sampler):
    seen = {}
    unfinished = []

    def on_finished(index, rollout):
        assert index not in seen
        seen[index] = rollout
        unfinished.append(sampler._engine.has_unfinished_requests())

    rollouts = run(sampler, on_finished=on_finished)
    assert [seen[index] for index in range(len(rollouts))] == rollouts
    assert unfinished[0] and not unfinished[-1]
    assert list(seen) != sorted(seen)


def test_an_update_reaches_every_parameter(model, sampler):
    before = run(sampler)
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        # The scores hardly feel a small bias of queries and keys.
        size = 3.0 if name.endswith("bias") else 0.3
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * size)
        assert gap(model, before) > 1e-3, f"{name} does not show"
        sampler.update_weights(model)
        assert gap(model, run(sampler)) < 1e-4, f"{name} is stale"
        with torch.no_grad():
            parameter.copy_(kept)
        assert gap(model, run(sampler)) > 1e-3, f"{name} is shared with the model in training"


def test_lora_reaches_the_sampler_merged(model, sampler):
    plain = {name: tensor.clone() for name, tensor in merged_weights(model)}
    adapted = Qwen2ForCausalLM(model.config)
    adapted.load_state_dict(model.state_dict())
    adapted.eval().add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False))
    sampler.update_weights(adapted)
    rollouts = run(sampler)
    assert gap(adapted, rollouts) < 1e-4
    assert gap(model, rollouts) > 0.1
    merged = dict(merged_weights(adapted))
    assert merged.keys() == plain.keys()
    layer = adapted.model.layers[1].self_attn.q_proj
    expected = layer.base_layer.weight + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged["model.layers.1.self_attn.q_proj.weight"], expected)
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(-1)
    assert gap(adapted, run(sampler)) > 1e-3
    sampler.update_weights(adapted)
    assert gap(adapted, run(sampler)) < 1e-4


def test_an_interrupted_round_leaves_nothing_behind(model, sampler):
    def interrupt(index, rollout):
        raise KeyboardInterrupt

    expected = run(sampler)
    with pytest.raises(KeyboardInterrupt):
        run(sampler, on_finished=interrupt, seeds=[seed + 1 for seed in SEEDS])
    assert not sampler._engine.has_unfinished_requests()
    assert [rollout.token_ids for rollout in run(sampler)] == [rollout.token_ids for rollout in expected]


def test_refuses_what_would_be_sampled_otherwise_than_asked(model, sampler):
    with pytest.raises(ValueError, match="more than the engine's limit of 256"):
        run(sampler, params=SamplingParams(temperature=1.0, max_new_tokens=200))
    with pytest.raises(ValueError, match="19 seeds for 5 prompts"):
        run(sampler, seeds=SEEDS[:-1])


def test_two_ranks_draw_what_one_does_from_gathered_shards(tmp_path):
    script = [str(Path(__file__).parents[1] / "support" / "vllm_two_ranks.py"), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = VLLMSampler(make_model(tied=False), character_tokenizer(), dtype=torch.float32, max_model_len=256, batch_rows=16)
    rollouts = run(alone)
    assert [tuple(row) for rank in ranks for row in rank["tokens"]] == [rollout.token_ids for rollout in rollouts]
    assert gap(make_model(tied=False), rollouts) < 1e-4
    assert all(rank["gap"] < 1e-4 and rank["moved"] for rank in ranks)


def test_bfloat16_engine_of_a_float32_model():
    model = make_model(tied=True)
    recipe = {
        "model": {"path": "unused"},
        "data": {"train": "unused"},
        "sampling": {"engine": "vllm", "dtype": "bfloat16", "max_new_tokens": 24, "batch_rows": 8},
    }
    sampler = build_sampler(parse_config(recipe), model, character_tokenizer(), longest_prompt=160)
    assert isinstance(sampler, VLLMSampler)
    params = SamplingParams(temperature=1.0, max_new_tokens=24)
    rollouts = run(sampler, params=params)
    with pytest.raises(ValueError, match="with cuts = True"):
        run(sampler, params=SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=24))
    assert 1e-3 < gap(model, rollouts, temperature=1.0) < 1.0
    with pytest.raises(ConfigError, match="vLLM takes 0.01 to 2"):
        recipe["sampling"]["temperature"] = 2.5
        build_sampler(parse_config(recipe), model, character_tokenizer(), longest_prompt=160)


def test_an_engine_that_fails_ends_the_run_and_says_how_to_go_on():
    sampler = VLLMSampler(make_model(tied=False), character_tokenizer(), dtype=torch.float32, max_model_len=256, batch_rows=8)

    def fail(*arguments, **keywords):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nlong advice")

    sampler._engine.apply_model(lambda model: setattr(model, "forward", fail))
    with pytest.raises(SamplingError, match=r"^vLLM failed while sampling: .*illegal memory access .*--resume"):
        run(sampler)
