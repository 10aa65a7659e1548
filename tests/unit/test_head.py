"""The chunked head against plain logits: values, entropy and every gradient, in float64 and across chunk borders."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from realrl import head as head_module
from realrl.head import Head, head_of, token_stats

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=32)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
}


def reference(hidden, head, ids, temperature):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logps = (logits * head.scale / temperature).log_softmax(dim=-1)
    return logps[torch.arange(len(ids)), ids], -(logps.exp() * logps).sum(dim=-1)


@pytest.mark.parametrize("rows", [4, 11])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_values_and_gradients_are_those_of_plain_logits(monkeypatch, rows, bias, softcap, scale):
    monkeypatch.setattr(head_module, "_FEWEST_TOKENS", rows)
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    hidden, weight, offset = (torch.randn(*shape, requires_grad=True) for shape in ((11, 6), (37, 6), (37,)))
    ids, upstream = torch.randint(0, 37, (11,)), torch.randn(11)
    head = Head(weight, offset if bias else None, softcap, scale)
    leaves = [hidden, weight, *([offset] if bias else [])]
    logprobs, entropy = token_stats(head, hidden, ids, 0.7)
    ours = torch.autograd.grad((logprobs * upstream).sum(), leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted, wanted_entropy = reference(wide[0], Head(wide[1], wide[2] if bias else None, softcap, scale), ids, 0.7)
    theirs = torch.autograd.grad((wanted * upstream).sum(), wide)
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), wanted_entropy, atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_heads_of_these_models_are_known_and_right(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    head = head_of(model)
    assert head is not None and model.training
    ids = torch.randint(0, 50, (2, 7))
    model.eval()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        wanted = model(input_ids=ids).logits.flatten(0, 1).float().log_softmax(-1)
        got, _ = token_stats(head, hidden, ids.flatten(), 1.0)
    torch.testing.assert_close(got, wanted.gather(1, ids.flatten()[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_a_head_that_does_something_else_is_not_taken():
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.flip(-1)
            return out

    torch.manual_seed(0)
    model = Odd(LlamaConfig(**SIZES))
    assert head_of(model) is None
    torch.nn.init.normal_(model.lm_head.weight)
    assert head_of(model) is None


def test_memory_does_not_grow_with_the_number_of_tokens(monkeypatch):
    """The largest tensor made on the way is a chunk's logits."""
    monkeypatch.setattr(head_module, "_FEWEST_TOKENS", 8)
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", 1)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight = torch.randn(400, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    with Watch():
        logprobs, _ = token_stats(Head(weight, None, None, 1.0), hidden, torch.zeros(400, dtype=torch.long), 1.0)
        logprobs.sum().backward()
    assert largest == 8 * 300


def test_autocast_multiplies_in_its_own_type():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 64, requires_grad=True), torch.randn(100, 64, requires_grad=True)
    ids = torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)
    exact, _ = token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).abs().max().item() < 0.3
    rounded.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == weight.grad.dtype == torch.float32
