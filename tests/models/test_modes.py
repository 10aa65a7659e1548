"""What is trained is what samples: passes in training are the passes of eval mode, bit for bit, and their gradients are."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    Qwen2Config,
)

from realrl.errors import ModelError
from realrl.models.logprobs import layout_of
from realrl.models.modes import evaluating, noise_of, repeats_other_passes, train_without_noise

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
GROUPED = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.3}
NOISY = {
    "dropout modules": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2),
    "dropout of a layer, dropped layers": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, dropout=0.3, layerdrop=0.5),
    "dropout that the configuration holds": FalconConfig(**SIZES, hidden_dropout=0.2, attention_dropout=0.2),
    "an older architecture": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50, hidden_dropout=0.2),
    "attention": Qwen2Config(**GROUPED, attention_dropout=0.3),
    "router jitter": MixtralConfig(**GROUPED, num_local_experts=4, router_jitter_noise=0.3),
    "a router that draws": PhimoeConfig(**GROUPED, num_local_experts=4, router_jitter_noise=0.3),
}


@pytest.fixture(params=NOISY)
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(NOISY[request.param])


def passed(model):
    """Logits and gradient of one pass."""
    model.zero_grad()
    logits = model(input_ids=torch.arange(18).view(2, 9) * 7 % 50, use_cache=False).logits
    logits.square().sum().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_has_no_noise(model, checkpointing):
    wanted = passed(model.eval())
    assert not torch.equal(passed(model.train())[0], wanted[0])
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    train_without_noise(model)
    # Only what repeats its passes is in training mode, and with the attention of the first.
    assert any(module.training for module in model.modules()) == checkpointing and not repeats_other_passes(model)
    for got, expected in zip(passed(model), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_checkpointing_repeats_the_layers(model):
    runs = []
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))[0]
    norm = next(module for module in layer.modules() if "Norm" in type(module).__name__)
    norm.register_forward_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    train_without_noise(model)
    passed(model)
    assert len(runs) == 2


def test_noise_is_refused_where_training_mode_is_on(model):
    with pytest.raises(ModelError, match="two passes of the same weights differ"):
        layout_of(model.train())


def test_noise_is_named(model):
    found = noise_of(model)
    assert found
    for owner, name in found:
        setattr(owner, name, 0.0)
    assert not noise_of(model)
    if "Phimoe" not in type(model).__name__:
        assert torch.equal(passed(model.train())[0], passed(model.eval())[0])


def test_every_module_comes_back_in_its_mode():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Dropout()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before and any(before)
