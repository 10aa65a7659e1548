import pytest
import torch

from realrl.models import load_model, load_tokenizer
from realrl.sampling import HFSampler, SamplingParams
from realrl.sampling.hf import draw, end_token_ids

PROMPTS = [[1, 5, 6], [1, 4, 8, 9, 12, 7, 3], [1]]


@pytest.fixture
def model(tiny_folder):
    return load_model(str(tiny_folder), dtype=torch.float32).eval()


@pytest.fixture
def tokenizer(tiny_folder):
    return load_tokenizer(str(tiny_folder))


def run(model, tokenizer, seed=0, group_size=4, prompts=PROMPTS, dtype=None, **params):
    sampler = HFSampler(model, tokenizer, dtype=dtype)
    settings = SamplingParams(**{"temperature": 0.8, "max_new_tokens": 12, **params})
    return sampler.sample(prompts, group_size=group_size, params=settings, generator=torch.Generator().manual_seed(seed))


def test_logprobs_are_those_of_a_full_forward_of_the_row_alone(model, tokenizer):
    rollouts = run(model, tokenizer)
    assert [rollout.prompt_index for rollout in rollouts] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({len(rollout.token_ids) for rollout in rollouts}) > 1
    for rollout in rollouts:
        prompt = PROMPTS[rollout.prompt_index]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *rollout.token_ids]])).logits[0, len(prompt) - 1 : -1]
        table = (logits.double() / 0.8).log_softmax(-1)
        expected = [table[t, token].item() for t, token in enumerate(rollout.token_ids)]
        assert list(rollout.logprobs_sampler) == pytest.approx(expected, abs=1e-5)


def test_stops_at_every_end_token_and_says_when_cut(model, tokenizer):
    ends = end_token_ids(model, tokenizer)
    assert len(ends) == 2
    rollouts = run(model, tokenizer, group_size=64)
    assert {rollout.token_ids[-1] for rollout in rollouts if not rollout.truncated} == ends
    for rollout in rollouts:
        assert not ends & set(rollout.token_ids[:-1])
        assert rollout.truncated == (rollout.token_ids[-1] not in ends)
        assert not rollout.truncated or len(rollout.token_ids) == 12


def test_greedy_is_the_greedy_of_transformers(model, tokenizer):
    for rollout in run(model, tokenizer, group_size=1, temperature=0.0):
        prompt = torch.tensor([PROMPTS[rollout.prompt_index]])
        with torch.no_grad():
            expected = model.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :]
        assert list(rollout.token_ids) == expected.tolist()


def test_draws_depend_on_the_seed_alone(model, tokenizer):
    whole = run(model, tokenizer)
    assert whole == run(model, tokenizer)
    assert whole != run(model, tokenizer, seed=1)
    in_parts = run(model, tokenizer, batch_rows=4)
    assert [rollout.token_ids for rollout in in_parts] == [rollout.token_ids for rollout in whole]


def test_top_k_one_is_greedy_and_top_p_keeps_the_nucleus(model, tokenizer):
    greedy = run(model, tokenizer, group_size=1, temperature=0.0)
    assert [r.token_ids for r in run(model, tokenizer, group_size=1, top_k=1)] == [r.token_ids for r in greedy]
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None].repeat(4000, 1)
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, uniforms, SamplingParams(temperature=1.0, top_p=0.7))
    assert set(tokens.tolist()) == {0, 1}
    assert (tokens == 0).float().mean().item() == pytest.approx(0.5 / 0.8, abs=0.03)
    assert logprobs[tokens == 1][0].exp().item() == pytest.approx(0.3)


def test_draws_follow_the_tempered_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    tokens, _ = draw(logits[None].repeat(40_000, 1), uniforms, SamplingParams(temperature=0.6))
    shares = torch.bincount(tokens, minlength=4) / 40_000
    torch.testing.assert_close(shares, (logits / 0.6).softmax(-1), atol=0.01, rtol=0)


def test_the_bfloat16_copy_follows_the_trained_weights(model, tokenizer):
    sampler = HFSampler(model, tokenizer, dtype=torch.bfloat16)
    settings = SamplingParams(temperature=0.0, max_new_tokens=12)

    def greedy():
        return sampler.sample(PROMPTS, group_size=1, params=settings, generator=torch.Generator())

    before = greedy()
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert greedy() == before
    sampler.update_weights(model)
    assert greedy() != before
    assert model.dtype == torch.float32
