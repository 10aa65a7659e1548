"""Merged weights against PEFT's own merge, and gathered from FSDP2 shards."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from transformers import Qwen2Config, Qwen2ForCausalLM

from realrl.errors import ConfigError
from realrl.sampling.weights import merged_weights

peft = pytest.importorskip("peft")


def make_model(dtype=torch.float32, tied=False, width=16):
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=24,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def lora(**options):
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False, **options})


def assert_same_weights(model, expected):
    weights = dict(merged_weights(model))
    assert list(weights) == list(expected)
    for name, tensor in weights.items():
        assert tensor.dtype == expected[name].dtype and not tensor.requires_grad
        torch.testing.assert_close(tensor, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("tied", [False, True])
def test_without_adapters_they_are_the_parameters(tied):
    model = make_model(tied=tied)
    assert_same_weights(model, dict(model.named_parameters()))
    assert ("lm_head.weight" in dict(merged_weights(model))) != tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_is_merged_as_peft_does(dtype):
    model = make_model(dtype)
    model.add_adapter(lora())
    other = make_model(dtype)
    other.add_adapter(lora())
    other.load_state_dict(model.state_dict())
    for module in list(other.modules()):
        if hasattr(module, "lora_A"):
            module.merge()
    expected = {n.replace(".base_layer", ""): p for n, p in other.named_parameters() if ".lora_" not in n}
    assert_same_weights(model, expected)
    # Where the layers already hold the sum, it is not added twice.
    assert_same_weights(other, expected)


def test_disabled_adapters_do_not_count():
    plain = dict(make_model().named_parameters())
    model = make_model()
    model.add_adapter(lora())
    weight = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(dict(merged_weights(model))[weight], plain[weight])
    model.disable_adapters()
    assert_same_weights(model, plain)


def test_layers_trained_in_full_beside_an_adapter_take_their_trained_weights():
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    model.add_adapter(lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.lm_head.modules_to_save["default"].weight.fill_(0.25)
    weights = dict(merged_weights(model))
    assert sorted(weights) == sorted(names)
    assert bool((weights["lm_head.weight"] == 0.25).all())


@pytest.mark.parametrize(
    "tied, options, message",
    [
        (False, {"use_dora": True}, "use_dora = True"),
        (False, {"lora_bias": True}, "lora_bias = True"),
        (True, {"target_modules": ["embed_tokens"]}, "tied weight"),
        (True, {"target_modules": ["lm_head"]}, "tied weight"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_the_first_tensor(tied, options, message):
    model = make_model(tied=tied)
    model.add_adapter(lora(**options))
    with pytest.raises(ConfigError, match=message):
        next(merged_weights(model))


def test_an_adapter_of_another_kind_is_refused():
    model = make_model()
    model.add_adapter(peft.IA3Config(target_modules=["k_proj", "up_proj"], feedforward_modules=["up_proj"]))
    with pytest.raises(ConfigError, match="that is not LoRA"):
        next(merged_weights(model))


def test_four_bit_weights_are_unpacked_before_the_adapter_is_added():
    bnb = pytest.importorskip("bitsandbytes")
    # bitsandbytes 0.50 unpacks rows that are no multiple of 64 wrongly on CPU, in the layer's forward as well.
    model = make_model(width=64)
    mlp, name = model.model.layers[0].mlp, "model.layers.0.mlp.up_proj.weight"
    plain = mlp.up_proj.weight.detach().clone()
    mlp.up_proj = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    mlp.up_proj.weight = bnb.nn.Params4bit(plain, requires_grad=False, quant_type="nf4")
    mlp.up_proj.to("cpu")
    unpacked = dict(merged_weights(model))[name]
    # The widest gap of NF4 is 0.304 of a block's largest weight, rounding errs by half of it.
    assert unpacked.shape == plain.shape and 0 < float((unpacked - plain).abs().max()) < 0.16 * float(plain.abs().max())
    model.is_loaded_in_4bit = True
    model.add_adapter(lora())
    layer = model.model.layers[0].mlp.up_proj
    expected = unpacked + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(dict(merged_weights(model))[name], expected)


def test_shards_are_gathered():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = make_model()
        model.add_adapter(lora())
        expected = {name: tensor.clone() for name, tensor in merged_weights(model)}
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        assert_same_weights(model, expected)
    finally:
        torch.distributed.destroy_process_group()
