"""Every row of a batch must give the log-probabilities of the same row alone, in every layout."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from realrl.models.logprobs import layout_of, packs, response_logprobs, shares_prompts
from realrl.models.modes import train_without_noise
from realrl.types import Batch, Problem, Prompt

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 128,
}


# GPT-2 embeds absolute positions, so that it sees a shift that rotary models do not.
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}


def make(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    config, model = {
        "qwen2": lambda: (Qwen2Config(**SIZES), Qwen2ForCausalLM),
        "llama": lambda: (LlamaConfig(**SIZES), LlamaForCausalLM),
        "gpt2": lambda: (GPT2Config(**GPT2), GPT2LMHeadModel),
        # Windows shorter than the prompts.
        "mistral": lambda: (MistralConfig(**SIZES, sliding_window=4), MistralForCausalLM),
        "gemma2": lambda: (Gemma2Config(**SIZES, head_dim=8, sliding_window=4), Gemma2ForCausalLM),
    }[name]()
    # Gemma 2 caps the logits of attention, which only eager attention does.
    config._attn_implementation = "eager" if name == "gemma2" else attention
    model = model(config).eval()
    # Random initial logits are nearly flat; sharper ones make a wrong position visible.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.fixture(params=["qwen2", "llama", "gpt2"])
def model(request):
    return make(request.param)


def ragged_batch(seed: int = 0, common: int = 0) -> Batch:
    """`common`: how many first tokens all prompts share."""
    rng = torch.Generator().manual_seed(seed)
    prompt_lengths, group_ids, lengths = [3, 9, 1], [1, 0, 2, 1, 1, 0], [4, 1, 7, 2, 5, 3]
    shared = torch.randint(0, 50, (common,), generator=rng).tolist()
    prompts = [
        Prompt(Problem(str(i), "", ""), "", (*shared, *torch.randint(0, 50, (n,), generator=rng).tolist()))
        for i, n in enumerate(prompt_lengths)
    ]
    loss_mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return Batch(
        prompts=prompts,
        response_ids=torch.randint(0, 50, loss_mask.shape, generator=rng),
        loss_mask=loss_mask,
        group_ids=torch.tensor(group_ids),
        rewards=torch.tensor([1.0, 0, 0, 0, 1, 1]),
        levels=torch.ones(len(lengths), dtype=torch.long),
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )


def alone(model, batch: Batch, row: int, temperature: float):
    """Log-probabilities, entropy and top-1 of one row, unpadded, through the plain forward pass in float64."""
    length = int(batch.loss_mask[row].sum())
    prompt = list(batch.prompts[int(batch.group_ids[row])].token_ids)
    response = batch.response_ids[row, :length].tolist()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    table = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    top1 = [float(token == best) for token, best in zip(response, table.argmax(-1).tolist(), strict=True)]
    return table[range(length), response], -(table.exp() * table).sum(-1), top1


def assert_rows_equal_rows_alone(model, layout, temperature, common=0):
    batch = ragged_batch(common=common)
    stats = response_logprobs(model, batch, temperature=temperature, layout=layout)
    assert stats.logprobs.dtype == torch.float32
    for row in range(len(batch)):
        length = int(batch.loss_mask[row].sum())
        logprobs, entropy, top1 = alone(model, batch, row, temperature)
        torch.testing.assert_close(stats.logprobs[row, :length].double(), logprobs, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(stats.entropy[row, :length].double(), entropy, atol=2e-5, rtol=1e-5)
        assert stats.top1[row, :length].tolist() == top1
        for values in (stats.logprobs, stats.entropy, stats.top1):
            assert not values[row, length:].any()


@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_rows_equal_rows_alone(model, layout, temperature):
    assert_rows_equal_rows_alone(model, layout, temperature)


def test_what_all_prompts_begin_with_is_computed_once(model):
    """12 common tokens, 3 + 9 + 1 of the prompts, and 3 + 0 + 6 + 1 + 4 + 2 of the responses: each but its last token.

    The 3 tokens of one prompt stand there twice, because sharing them between its two rows would save too few.
    """
    rows = []
    model.get_input_embeddings().register_forward_hook(lambda module, ids, states: rows.append(tuple(states.shape[:2])))
    layout_of(model, longest=64)
    rows.clear()
    response_logprobs(model, ragged_batch(common=12), temperature=0.6, layout="tree")
    assert rows == [(1, 12 + 13 + 3 + 16)]
    assert_rows_equal_rows_alone(model, "tree", 0.6, common=12)


def test_prompts_of_which_one_begins_the_others(model):
    batch = ragged_batch(common=12)
    first = batch.prompts[2].token_ids[:12]
    batch = replace(batch, prompts=[*batch.prompts[:2], replace(batch.prompts[2], token_ids=first)])
    got, wanted = (response_logprobs(model, batch, temperature=1.0, layout=name).logprobs for name in ("tree", "padded"))
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_layers_with_a_window_keep_it(name, layout):
    model = make(name)
    assert layout_of(model, longest=64) == "tree"
    assert_rows_equal_rows_alone(model, layout, 0.6)


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_eager_attention(layout):
    assert_rows_equal_rows_alone(make("qwen2", "eager"), layout, 0.6)


def test_the_most_probable_token_counts_as_top1():
    model, batch = make("qwen2"), ragged_batch()
    greedy = []
    for row in range(len(batch)):
        tokens = list(batch.prompts[int(batch.group_ids[row])].token_ids)
        with torch.no_grad():
            for _ in range(batch.response_ids.shape[1]):
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        greedy.append(tokens[-batch.response_ids.shape[1] :])
    batch = replace(batch, response_ids=torch.tensor(greedy))
    for layout in ("tree", "packed", "padded"):
        assert torch.equal(response_logprobs(model, batch, temperature=0.6, layout=layout).top1, batch.loss_mask.float())


def gradient(model, batch, layout):
    model.zero_grad()
    response_logprobs(model, batch, temperature=0.6, layout=layout).logprobs.pow(2).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("common", [0, 12])
@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_gradients_equal_the_padded_ones(model, layout, common):
    batch = ragged_batch(1, common)
    wanted = gradient(model, batch, "padded")
    assert (gradient(model, batch, layout) - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral", "gemma2"])
def test_packed_rows_with_gradient_checkpointing(name, reentrant):
    model = make(name)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    batch = ragged_batch(1)
    wanted = gradient(model, batch, "padded")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model.train()
    assert (gradient(model, batch, "packed") - wanted).norm() / wanted.norm() < 1e-5


def test_an_unknown_head_goes_through_the_models_logits():
    class Odd(Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.flip(-1)
            return out

    torch.manual_seed(0)
    model = Odd(Qwen2Config(**SIZES)).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    for layout in ("tree", "packed", "padded"):
        assert_rows_equal_rows_alone(model, layout, 0.6)
        # A micro-batch of one row: its states are asked for by their places.
        batch = ragged_batch()
        one = replace(
            batch,
            **{name: getattr(batch, name)[2:3] for name in ("response_ids", "loss_mask", "group_ids", "rewards", "levels")},
            logprobs_sampler=batch.logprobs_sampler[2:3],
        )
        got = response_logprobs(model, one, temperature=0.6, layout=layout).logprobs[0]
        torch.testing.assert_close(got.double(), alone(model, batch, 2, 0.6)[0], atol=2e-5, rtol=1e-5)


def test_a_model_whose_rows_would_mix_is_padded():
    """A state runs through the whole row whatever the position ids say."""
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert not packs(model) and not shares_prompts(model) and layout_of(model) == "padded"
    with pytest.raises(ValueError, match="packed.*MambaForCausalLM"):
        response_logprobs(model, ragged_batch(), temperature=1.0, layout="packed")


def test_position_ids_that_a_model_ignores_are_noticed():
    class Deaf(Qwen2ForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            inner = self.model.forward
            self.model.forward = lambda *args, position_ids=None, **kwargs: inner(*args, **kwargs)

    torch.manual_seed(0)
    model = Deaf(Qwen2Config(**SIZES))
    assert not packs(model) and layout_of(model) == "padded"


def test_a_forward_pass_without_position_ids_is_not_shared():
    """In bfloat16 random weights hide what positions change."""

    class Deaf(Qwen2ForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            inner = self.model.forward
            self.model.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "position_ids": None})

    torch.manual_seed(0)
    assert not shares_prompts(Deaf(Qwen2Config(**SIZES)).to(torch.bfloat16))


def test_a_window_that_only_the_mask_knows_is_not_shared():
    """It is longer than what a trial sees."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=32, max_window_layers=0))
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert not shares_prompts(model)


def test_a_soft_cap_in_attention_is_shared():
    torch.manual_seed(0)
    options = {"head_dim": 8, "layer_types": ["full_attention"] * 2, "attn_logit_softcapping": 0.05}
    model = Gemma2ForCausalLM(Gemma2Config(**SIZES, **options, attn_implementation="eager")).eval()
    assert layout_of(model) == "tree"
    assert_rows_equal_rows_alone(model, "tree", 0.6)


def test_the_models_own_attention_is_back_afterwards():
    model = make("qwen2")
    response_logprobs(model, ragged_batch(), temperature=1.0, layout="tree")
    assert model.config._attn_implementation == "sdpa"


def test_a_gradient_of_one_group_whose_responses_are_of_one_length():
    """Nothing is padded, and all rows share one mask."""
    model, batch = make("qwen2"), ragged_batch()
    batch = replace(batch, group_ids=torch.zeros(6, dtype=torch.long), loss_mask=torch.ones_like(batch.loss_mask))
    wanted = gradient(model, batch, "padded")
    assert (gradient(model, batch, "tree") - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
@pytest.mark.parametrize("tied", [False, True])
def test_lora_gives_the_values_and_gradients_of_the_models_own_logits(targets, tied):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied))
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=targets)).eval()
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in adapter:
            parameter.normal_(std=0.3)
    batch = ragged_batch(1)
    loss = torch.tensor(0.0)
    for row in range(len(batch)):
        length = int(batch.loss_mask[row].sum())
        prompt = list(batch.prompts[int(batch.group_ids[row])].token_ids)
        response = batch.response_ids[row, :length]
        logits = model(input_ids=torch.tensor([prompt + response.tolist()])).logits[0]
        loss = loss + (logits[len(prompt) - 1 : -1] / 0.6).log_softmax(-1)[range(length), response].pow(2).sum()
    wanted = torch.autograd.grad(loss, adapter)
    for layout in ("tree", "packed", "padded"):
        ours = response_logprobs(model, batch, temperature=0.6, layout=layout).logprobs.pow(2).sum()
        torch.testing.assert_close(ours, loss, atol=1e-4, rtol=1e-5)
        for mine, theirs in zip(torch.autograd.grad(ours, adapter), wanted, strict=True):
            assert theirs.any() and (mine - theirs).norm() < 1e-4 * theirs.norm()
    with model.disable_adapter():
        assert_rows_equal_rows_alone(base, None, 0.6)


def test_learnt_prompts_are_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make("qwen2"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="LoRA"):
        response_logprobs(model, ragged_batch(), temperature=1.0)


def test_single_token_responses(model):
    batch = ragged_batch()
    rows = torch.tensor([1])
    from realrl.training.batching import select_rows

    one = select_rows(batch, rows)
    assert one.response_ids.shape == (1, 1)
    logprobs, _, _ = alone(model, batch, 1, 1.0)
    for layout in ("tree", "packed", "padded"):
        stats = response_logprobs(model, one, temperature=1.0, layout=layout)
        torch.testing.assert_close(stats.logprobs[0].double(), logprobs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral", "gemma2"])
def test_a_repeated_pass_has_the_attention_of_the_first(name):
    model, batch = make(name), ragged_batch(1, common=12)
    wanted = gradient(model, batch, "padded")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # Nothing switches the attention in a checkpoint function that is not ours.
    model.train()
    assert not shares_prompts(model)
    train_without_noise(model)
    assert layout_of(model, longest=64) == "tree"
    assert (gradient(model, batch, "tree") - wanted).norm() / wanted.norm() < 1e-5
    # Two forward passes before their backward passes: each repeats its own tree.
    model.zero_grad()
    other = ragged_batch(2, common=3)
    both = [response_logprobs(model, one, temperature=0.6, layout="tree").logprobs for one in (batch, other)]
    both[0].pow(2).sum().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (found - wanted).norm() / wanted.norm() < 1e-5
