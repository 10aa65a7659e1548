"""The head in tiles against plain logits: values, entropy, top-1 and every gradient, in float64 and across tile borders."""

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
    PhiConfig,
    PhiForCausalLM,
)

from realrl.models import head as head_module
from realrl.models.head import Head, head_of, token_stats

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
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
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


def tiles(monkeypatch, rows: int, columns: int, kept: int = 0) -> None:
    monkeypatch.setitem(head_module._TILE_TOKENS, "cpu", rows)
    monkeypatch.setitem(head_module._TILE_ELEMENTS, "cpu", rows * columns)
    monkeypatch.setattr(head_module, "_KEPT_ELEMENTS", kept)


@pytest.mark.parametrize("rows, columns", [(4, 10), (11, 37), (3, 1)])
@pytest.mark.parametrize("kept", [0, 11 * 37])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_values_and_gradients_are_those_of_plain_logits(monkeypatch, rows, columns, kept, bias, softcap, scale):
    tiles(monkeypatch, rows, columns, kept)
    torch.manual_seed(0)
    hidden, weight, offset = (torch.randn(*shape, requires_grad=True) for shape in ((11, 6), (37, 6), (37,)))
    ids, upstream = torch.randint(0, 37, (11,)), torch.randn(11)
    head = Head(weight, offset if bias else None, softcap, scale)
    leaves = [hidden, weight, *([offset] if bias else [])]
    logprobs, entropy, _ = token_stats(head, hidden, ids, 0.7)
    ours = torch.autograd.grad((logprobs * upstream).sum(), leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted, wanted_entropy = reference(wide[0], Head(wide[1], wide[2] if bias else None, softcap, scale), ids, 0.7)
    theirs = torch.autograd.grad((wanted * upstream).sum(), wide)
    torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), wanted_entropy, atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=1e-5, rtol=1e-4)


def test_backward_twice_gives_the_same_gradient_twice():
    """What forward keeps is not used up."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 6, requires_grad=True), torch.randn(37, 6, requires_grad=True)
    logprobs, _, _ = token_stats(Head(weight, None, None, 1.0), hidden, torch.arange(11), 0.7)
    first = torch.autograd.grad(logprobs.sum(), (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("columns", [10, 37])
def test_top1_marks_the_most_probable_token(monkeypatch, columns):
    tiles(monkeypatch, 4, columns)
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 6, requires_grad=True), torch.randn(37, 6)
    best = (hidden.detach().double() @ weight.double().T).argmax(dim=1)
    ids = torch.where(torch.arange(40) % 3 == 0, (best + torch.randint(1, 37, (40,))) % 37, best)
    logprobs, _, top1 = token_stats(Head(weight, None, None, 1.0), hidden, ids, 0.6)
    assert top1.tolist() == [float(i % 3 != 0) for i in range(40)]
    assert logprobs.requires_grad and not top1.requires_grad


def test_logits_far_from_0_neither_overflow_nor_vanish(monkeypatch):
    """Sums move to the highest logit seen, in whichever tile it comes."""
    tiles(monkeypatch, 2, 2)
    hidden = torch.tensor([[1.0], [-2.0], [-1.0]])
    for order in ([500.0, 300.0, 499.0, 400.0, 501.0], [501.0, 500.0, 300.0, 400.0, 499.0], [500.0, -300.0, 499.0, 0.0, 501.0]):
        weight = torch.tensor(order)[:, None]
        ids = torch.tensor([order.index(500.0), order.index(min(order)), order.index(499.0)])
        logprobs, entropy, top1 = token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)
        wanted, wanted_entropy = reference(hidden.double(), Head(weight.double(), None, None, 1.0), ids, 1)
        torch.testing.assert_close(logprobs.double(), wanted, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(entropy.double(), wanted_entropy, atol=1e-5, rtol=1e-5)
        assert top1.tolist() == [0.0, 1.0, 0.0]


def test_frozen_parts_get_no_gradient():
    hidden, weight = torch.randn(5, 6, requires_grad=True), torch.randn(37, 6)
    token_stats(Head(weight, None, None, 1.0), hidden, torch.arange(5), 1.0)[0].sum().backward()
    assert hidden.grad is not None and hidden.grad.any() and weight.grad is None


@pytest.mark.parametrize("name", MODELS)
def test_the_heads_of_these_models_are_known_and_right(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    head = head_of(model)
    assert head is not None and model.training
    peculiar = {
        "gemma2": head.softcap == 3.0,
        "cohere": head.scale == 0.25,
        "granite": head.scale == 0.25,
        "phi": head.bias is not None,
    }
    assert peculiar.get(name, True)
    ids = torch.randint(0, 50, (2, 7))
    model.eval()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        wanted = model(input_ids=ids).logits.flatten(0, 1).float().log_softmax(-1)
        got, _, _ = token_stats(head, hidden, ids.flatten(), 1.0)
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


@pytest.mark.parametrize("vocabulary, kept", [(300, 0), (3000, 0), (3000, 60_000)])
def test_memory_depends_on_neither_tokens_nor_vocabulary(monkeypatch, vocabulary, kept):
    """The largest tensor made on the way is a tile's, or a gradient; all of a forward pass's together are what may be kept."""
    tiles(monkeypatch, 8, 50, kept)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.shape not in (weight.shape, weight.T.shape):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight = torch.randn(400, 1, requires_grad=True), torch.randn(vocabulary, 1, requires_grad=True)
    with Watch():
        logprobs, _, _ = token_stats(Head(weight, None, None, 1.0), hidden, torch.zeros(400, dtype=torch.long), 1.0)
        logprobs.sum().backward()
    assert largest == 400
    assert head_module.tokens_at_once(vocabulary) * vocabulary <= max(kept, vocabulary)


def test_autocast_multiplies_in_its_own_type():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 64, requires_grad=True), torch.randn(100, 64, requires_grad=True)
    ids = torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _, _ = token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)
    exact, _, _ = token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).abs().max().item() < 0.3
    rounded.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == weight.grad.dtype == torch.float32
