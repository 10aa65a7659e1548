import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from realrl.errors import SamplingError
from realrl.models import load_model, load_tokenizer
from realrl.sampling import HFSampler, SamplingParams
from realrl.sampling.cache import RowLayer
from realrl.sampling.hf import draw, end_token_ids
from realrl.seeding import derive_seed

PROMPTS = [[1, 5, 6], [1, 4, 8, 9, 12, 7, 3], [1]]


@pytest.fixture
def model(tiny_folder):
    return load_model(str(tiny_folder), dtype=torch.float32).eval()


@pytest.fixture
def tokenizer(tiny_folder):
    return load_tokenizer(str(tiny_folder))


def seeds_of(seed, prompts, group_size):
    return [derive_seed(seed, prompt, sample) for prompt in range(prompts) for sample in range(group_size)]


def run(model, tokenizer, seed=0, group_size=4, prompts=PROMPTS, dtype=None, on_finished=None, sampler=None, **params):
    sampler = sampler or HFSampler(model, tokenizer, dtype=dtype)
    settings = SamplingParams(**{"temperature": 0.8, "max_new_tokens": 12, **params})
    seeds = seeds_of(seed, len(prompts), group_size)
    return sampler.sample(prompts, group_size=group_size, params=settings, seeds=seeds, on_finished=on_finished)


def assert_logprobs_are_those_of_a_full_forward(model, rollouts, prompts=PROMPTS, temperature=0.8):
    assert len({len(rollout.token_ids) for rollout in rollouts}) > 1
    for rollout in rollouts:
        prompt = prompts[rollout.prompt_index]
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *rollout.token_ids]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        table = (logits.double() / temperature).log_softmax(-1)
        expected = [table[t, token].item() for t, token in enumerate(rollout.token_ids)]
        assert list(rollout.logprobs_sampler) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_logprobs_are_those_of_a_full_forward_of_the_row_alone(model, tokenizer):
    rollouts = run(model, tokenizer)
    assert [rollout.prompt_index for rollout in rollouts] == [0] * 4 + [1] * 4 + [2] * 4
    assert_logprobs_are_those_of_a_full_forward(model, rollouts)


@pytest.mark.parametrize("batch_rows", [2, 3, 5])
def test_rows_that_enter_beside_others_agree_with_a_full_forward(batch_rows, model, tokenizer):
    """Prompts longer than all that was sampled before, and short ones, when the longest rows are gone."""
    prompts = [[1], [1, 5, 6], [1, *range(4, 14)] * 3, [1, 4], [1, 8, 9], [1, 7], [1, 6, 5, 4], [1, *range(5, 12)]]
    rollouts = run(model, tokenizer, group_size=2, prompts=prompts, batch_rows=batch_rows, max_new_tokens=20)
    assert_logprobs_are_those_of_a_full_forward(model, rollouts, prompts)


def test_a_rank_without_prompts_samples_nothing(model, tokenizer):
    assert run(model, tokenizer, prompts=[]) == []


# Nine tokens that all begin with; one has two more, the others one or none of their own before their last.
COMMON = [1, 5, 6, 7, 8, 9, 10, 4, 11]
BEGIN_ALIKE = [[*COMMON, 5], [*COMMON, 6, 7, 8], [*COMMON, 9], COMMON + [4, 4], [*COMMON, 12, 5], [*COMMON, 7]]


@pytest.mark.parametrize("batch_rows", [4, 9, 256])
def test_what_all_prompts_begin_with_is_prefilled_once(batch_rows, model, tokenizer):
    shapes = []
    sampler = HFSampler(model, tokenizer, longest=64)  # tries the model
    hook = model.get_input_embeddings().register_forward_hook(lambda module, ids, states: shapes.append(states.shape[:2]))
    rollouts = run(model, tokenizer, 0, 2, BEGIN_ALIKE, sampler=sampler, batch_rows=batch_rows, max_new_tokens=20)
    hook.remove()
    assert [shape for shape in shapes if shape == (1, len(COMMON))] == [(1, len(COMMON))]
    # The rest of a prompt, or a token of each row.
    assert all(shape[1] <= 3 for shape in shapes if shape != (1, len(COMMON)) and shape != (1, 2))
    assert_logprobs_are_those_of_a_full_forward(model, rollouts, BEGIN_ALIKE)


@pytest.mark.parametrize("prompts", [PROMPTS, BEGIN_ALIKE])
@pytest.mark.parametrize("batch_rows", [4, 9, 256])
@pytest.mark.parametrize("kind", ["gpt2", "window"])
def test_other_architectures_agree_with_a_full_forward(kind, batch_rows, prompts, tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "eos_token_id": [2, 3, 4]}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **shape))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        window = {"num_key_value_heads": 2, "sliding_window": 5, "initializer_range": 0.3}
        model = MistralForCausalLM(MistralConfig(**sizes, **window, **shape))
    rollouts = run(model.eval(), tokenizer, max_new_tokens=20, batch_rows=batch_rows, prompts=prompts)
    assert_logprobs_are_those_of_a_full_forward(model, rollouts, prompts)
    assert max(len(rollout.token_ids) for rollout in rollouts) > 5


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
    for batch_rows in (3, 4, 5, 8, 11):
        in_parts = run(model, tokenizer, batch_rows=batch_rows)
        assert [rollout.token_ids for rollout in in_parts] == [rollout.token_ids for rollout in whole]


def test_draws_do_not_depend_on_other_prompts_or_the_order(model, tokenizer):
    whole = [rollout.token_ids for rollout in run(model, tokenizer)]
    seeds = seeds_of(0, 3, 4)
    sampler = HFSampler(model, tokenizer)
    params = SamplingParams(temperature=0.8, max_new_tokens=12)
    turned = sampler.sample(PROMPTS[::-1], group_size=4, params=params, seeds=seeds[8:] + seeds[4:8] + seeds[:4])
    assert [rollout.token_ids for rollout in turned] == whole[8:] + whole[4:8] + whole[:4]
    alone = sampler.sample([PROMPTS[1]], group_size=1, params=params, seeds=[seeds[6]])
    assert [rollout.token_ids for rollout in alone] == [whole[6]]


@pytest.mark.parametrize("batch_rows", [4, 7, 256])
def test_every_rollout_is_reported_once_when_it_ends(batch_rows, model, tokenizer):
    calls = []
    rollouts = run(model, tokenizer, group_size=8, batch_rows=batch_rows, on_finished=lambda *call: calls.append(call))
    assert sorted(index for index, _ in calls) == list(range(24))
    assert all(rollouts[index] is rollout for index, rollout in calls)
    lengths = [len(rollout.token_ids) for _, rollout in calls]
    assert len(set(lengths)) > 2
    if batch_rows == 256:
        assert lengths == sorted(lengths)


def test_responses_that_do_not_fit_into_memory_are_an_error_that_says_what_to_lower(model, tokenizer):
    with pytest.raises(SamplingError, match="up to 12 responses of up to 10000000000000 tokens .* lower sampling.batch_rows"):
        run(model, tokenizer, max_new_tokens=10**13)


def test_a_seed_for_each_rollout_is_asked_for(model, tokenizer):
    with pytest.raises(ValueError, match="got 5 seeds for 6 rollouts"):
        params = SamplingParams(temperature=1.0)
        HFSampler(model, tokenizer).sample(PROMPTS, group_size=2, params=params, seeds=[0] * 5)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_holds_what_naive_concatenation_holds(seed):
    """Rows enter, leave and grow over the borders of blocks; every real column is compared, and every blank is 0."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    layer, rows = RowLayer(block=3), []
    for _ in range(12):
        width = layer.get_seq_length()
        if len(rows) < 5:
            prompts, longest = RowLayer(block=3), integer(1, 9)
            keys, values = prompts.update(some(2, 3, longest, 4), some(2, 3, longest, 5))
            repeat = torch.randint(2, (integer(1, 4),), generator=generator)
            drop = min((width - len(k[0]) for k, _ in rows), default=0) if rows else 0
            layer.admit(prompts, repeat, drop)
            rows += [(keys[i], values[i]) for i in repeat.tolist()]
        for _ in range(integer(1, 6)):
            new = some(len(rows), 3, 1, 4), some(len(rows), 3, 1, 5)
            layer.update(*new)
            rows = [(torch.cat([k, a], 1), torch.cat([v, b], 1)) for (k, v), a, b in zip(rows, *new, strict=True)]
        for (k, v), own_k, own_v in zip(rows, layer.keys, layer.values, strict=True):
            assert torch.equal(own_k[:, -k.shape[1] :], k) and torch.equal(own_v[:, -v.shape[1] :], v)
            assert not own_k[:, : -k.shape[1]].any() and not own_v[:, : -v.shape[1]].any()
        # The last row takes the place of the first.
        rows[0] = rows[-1]
        rows.pop()
        targets = torch.tensor([0] if rows else [], dtype=torch.long)
        layer.move(torch.tensor([len(rows)] if rows else [], dtype=torch.long), targets, len(rows))


def test_a_cache_of_many_blocks_samples_the_same(model, tokenizer, monkeypatch):
    whole = run(model, tokenizer, group_size=16)
    monkeypatch.setattr("realrl.sampling.hf.BLOCK", 1)
    assert [r.token_ids for r in run(model, tokenizer, group_size=16)] == [r.token_ids for r in whole]


@pytest.mark.parametrize("vocabulary", [3, 2048, 2049, 49_152, 151_936])
def test_draws_are_those_of_a_running_sum_in_float64(vocabulary):
    """The tail stays within reach: half of the mass lies on the first token, the other half on all others evenly."""
    logits = torch.zeros(vocabulary)
    logits[0] = np.log(vocabulary - 1)
    uniforms = torch.rand(400, generator=torch.Generator().manual_seed(0))
    uniforms[:100] = 1 - uniforms[:100] / 1000
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-24])
    params = SamplingParams(temperature=1.0)
    tokens = torch.cat([draw(logits.repeat(len(part), 1), part, params)[0] for part in uniforms.split(40)])
    # Token i ≥ 1 covers [1/2 + (i − 1) / 2(V − 1), 1/2 + i / 2(V − 1)).
    exact = np.maximum(0, 1 + np.floor((uniforms.double().numpy() - 0.5) * 2 * (vocabulary - 1)))
    assert tokens[0] == 0 and tokens[1] == vocabulary - 1
    assert np.abs(tokens.numpy() - exact).max() <= 1
    assert (tokens.numpy() == exact).mean() > 0.9
    late = uniforms >= 0.999
    assert len(set(tokens[late].tolist())) == min(int(late.sum()), len(set(exact[late.numpy()])))


def test_a_token_of_no_weight_is_never_drawn():
    logits = torch.full((64, 5000), -torch.inf)
    logits[:, [100, 2100, 4500]] = 0.0
    uniforms = torch.linspace(0, 1, 64).clamp(max=1 - 2**-24)
    tokens, _ = draw(logits, uniforms, SamplingParams(temperature=1.0))
    assert set(tokens.tolist()) == {100, 2100, 4500}


@pytest.mark.parametrize("sharpness", [0.1, 12.0])
def test_the_nucleus_is_that_of_a_full_sort(sharpness):
    """A nucleus of many thousand tokens, and one of a few."""
    logits = torch.randn(64, 6000, generator=torch.Generator().manual_seed(0)) * sharpness
    uniforms = torch.rand(64, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(logits.clone(), uniforms, SamplingParams(temperature=1.0, top_p=0.9))
    probs = logits.double().softmax(-1).numpy()
    for row in range(64):
        order = np.argsort(-probs[row])
        kept = order[: int((np.cumsum(probs[row][order]) < 0.9).sum()) + 1]
        cut = np.zeros(6000)
        cut[kept] = probs[row][kept]
        running = np.cumsum(cut) / cut.sum()
        assert tokens[row] in kept
        assert abs(running[tokens[row]] - uniforms[row]) <= cut[tokens[row]] / cut.sum() + 1e-5
        assert logprobs[row].item() == pytest.approx(np.log(probs[row][tokens[row]]), abs=1e-5)


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


def test_a_copy_takes_over_what_is_trained_and_nothing_else(model, tokenizer):
    """As with adapters: the frozen weights stay as they were copied, those in training reach the sampler."""
    model.requires_grad_(False)
    model.model.layers[0].mlp.register_parameter("adapter", torch.nn.Parameter(torch.zeros(32)))
    sampler = HFSampler(model, tokenizer, copy=True)
    assert sampler._model is not model
    frozen = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.model.layers[0].mlp.adapter.add_(1.0)
        model.lm_head.weight.neg_()
    own = sampler._model
    assert not own.model.layers[0].mlp.adapter.any()
    sampler.update_weights(model)
    assert torch.equal(own.model.layers[0].mlp.adapter, torch.ones(32))
    assert torch.equal(own.lm_head.weight, frozen)
    assert model.model.layers[0].mlp.adapter.requires_grad and not own.model.layers[0].mlp.adapter.requires_grad


def test_the_bfloat16_copy_follows_the_trained_weights(model, tokenizer):
    sampler = HFSampler(model, tokenizer, dtype=torch.bfloat16)
    settings = SamplingParams(temperature=0.0, max_new_tokens=12)

    def greedy():
        return sampler.sample(PROMPTS, group_size=1, params=settings, seeds=seeds_of(0, 3, 1))

    before = greedy()
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert greedy() == before
    sampler.update_weights(model)
    assert greedy() != before
    assert model.dtype == torch.float32
