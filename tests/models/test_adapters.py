"""LoRA inside the model: its gradient, the reference with adapters off, folders that hold an adapter alone, QLoRA."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM

from realrl.config import LoraSection
from realrl.errors import ConfigError
from realrl.models import Reference, adapters, load_model, load_tokenizer, resolve_model, weights_fingerprint
from realrl.models.adapters import adapters_off, add_lora, merge_adapters
from realrl.models.head import head_of
from realrl.models.logprobs import response_logprobs
from realrl.sampling import HFSampler, SamplingParams
from realrl.types import Batch, Problem, Prompt
from recipes import config_of

pytest.importorskip("peft", reason="needs peft: pip install 'realrl[lora]'")
NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'realrl[qlora]'"
)
LORA = LoraSection(rank=3, alpha=12)
IDS = torch.tensor([[1, 5, 9, 4, 7, 11, 3]])


def ragged_batch() -> Batch:
    rng = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 3, 1, 5])
    loss_mask = torch.arange(6)[None] < lengths[:, None]
    return Batch(
        prompts=[Prompt(Problem(str(g), "", ""), "", tuple(range(3, 6 + 2 * g))) for g in range(2)],
        response_ids=torch.randint(3, 25, loss_mask.shape, generator=rng),
        loss_mask=loss_mask,
        group_ids=torch.tensor([0, 1, 0, 1]),
        rewards=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        levels=torch.tensor([2, 1, 1, 2]),
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )


def lora_weights(model):
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def fill(model, seed=5):
    """Adapters as training leaves them: B is no longer 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_weights(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))


def adapted(folder, dtype=torch.float32, **kwargs):
    model = load_model(str(folder), dtype=dtype, **kwargs)
    add_lora(model, LORA, seed=0)
    return model


def checkpoint(folder, target):
    model = adapted(folder)
    fill(model)
    model.save_pretrained(target)
    load_tokenizer(str(folder)).save_pretrained(target)
    return model.eval()


def prepared(folder, **sections):
    """What a run would start with; its graders are closed."""
    from realrl.training.distributed import World
    from realrl.training.setup import prepare

    run = prepare(config_of(folder, **sections), World())
    run.grader.close()
    return run


def explicit_gradients(folder, model, batch):
    """Autograd through W + (alpha / r) B A in a plain model, with leaves A and B."""
    plain = load_model(str(folder), dtype=torch.float32)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in lora_weights(model).items()}
    weights = dict(plain.named_parameters())
    targets = {name.split(".lora_")[0] for name in leaves}
    for target in targets:
        a, b = (leaves[f"{target}.lora_{letter}.default.weight"] for letter in "AB")
        weights[f"{target}.weight"] = weights[f"{target}.weight"] + LORA.alpha / LORA.rank * (b @ a)
    total = torch.zeros(())
    for row in range(len(batch)):
        prompt = batch.prompts[int(batch.group_ids[row])].token_ids
        response = batch.response_ids[row, batch.loss_mask[row]]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        logprobs = functional_call(plain, weights, kwargs={"input_ids": ids}).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = total + (row + 1) * logprobs.gather(1, response[:, None]).sum()
    total.backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def gradients(model, batch):
    stats = response_logprobs(model, batch, temperature=1.0)
    (torch.arange(1.0, len(batch) + 1)[:, None] * stats.logprobs).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_formula(tiny_folder, checkpointing):
    model = prepared(tiny_folder, model={"lora": LORA.model_dump(), "gradient_checkpointing": checkpointing}).model
    fill(model)
    found, expected = gradients(model, ragged_batch()), explicit_gradients(tiny_folder, model, ragged_batch())
    # Seven linear layers in each of the two blocks; the head and the embedding have no adapter.
    assert found.keys() == expected.keys() and len(found) == 2 * 2 * 7
    assert all((found[name] - gradient).norm() / gradient.norm() < 1e-4 for name, gradient in expected.items())


def test_gradient_checkpointing_leaves_the_gradient_alone(tiny_folder):
    found = []
    for checkpointing in (False, True):
        model = prepared(tiny_folder, model={"gradient_checkpointing": checkpointing}).model
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == checkpointing
        found.append(gradients(model, ragged_batch()))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    # The shared prompt pass is off with checkpointing, so sums come in another order.
    assert all((found[1][name] - gradient).norm() / gradient.norm() < 1e-5 for name, gradient in found[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fresh_adapters_change_nothing_and_alone_are_trained(tiny_folder, dtype):
    model = load_model(str(tiny_folder), dtype=dtype)
    kind, head, base = type(model), model.get_output_embeddings(), model.base_model
    before = model(IDS).logits
    add_lora(model, LORA, seed=0)
    assert torch.equal(model(IDS).logits, before)
    assert (type(model), model.get_output_embeddings(), model.base_model) == (kind, head, base)
    assert head_of(model) is not None and model.dtype == dtype
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == lora_weights(model).keys() and len(trained) == 28
    assert all(p.dtype == torch.float32 for p in trained.values())
    again, other = load_model(str(tiny_folder), dtype=dtype), load_model(str(tiny_folder), dtype=dtype)
    torch.manual_seed(99)
    add_lora(again, LORA, seed=0)
    add_lora(other, LORA, seed=1)
    assert all(torch.equal(p, lora_weights(again)[name]) for name, p in trained.items())
    assert any(not torch.equal(p, lora_weights(other)[name]) for name, p in trained.items())


def test_the_reference_is_the_policy_with_its_adapters_off(tiny_folder):
    base = load_model(str(tiny_folder), dtype=torch.float32).eval()
    model = adapted(tiny_folder).train()
    fill(model)
    expected = response_logprobs(base, ragged_batch(), temperature=0.7).logprobs
    policy = response_logprobs(model, ragged_batch(), temperature=0.7).logprobs
    assert (policy - expected).abs().max() > 0.1
    with Reference(model, shared=True) as reference:
        found = response_logprobs(reference, ragged_batch(), temperature=0.7).logprobs
        assert not reference.training and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # Afterwards the policy is as it was, gradients included.
    assert model.training and torch.equal(response_logprobs(model, ragged_batch(), temperature=0.7).logprobs, policy)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    with adapters_off(model):
        assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    # A model that is frozen stays so.
    model.requires_grad_(False)
    with adapters_off(model):
        pass
    assert not any(p.requires_grad for p in model.parameters())


def test_a_reference_of_its_own_is_frozen(tiny_folder):
    model = load_model(str(tiny_folder), dtype=torch.float32).train()
    for reference in (Reference(model), Reference(model, device=torch.device("cpu"))):
        assert reference.own is model
        with reference as frozen:
            assert frozen is model and not frozen.training and not frozen(IDS).logits.requires_grad
        assert not any(p.requires_grad for p in model.parameters())


def test_an_offloaded_reference_is_elsewhere_between_passes(tiny_folder):
    """Moved as `torch.nn.Module.to` moves; the meta device stands for the one that is not there."""
    model = load_model(str(tiny_folder), dtype=torch.float32)
    reference = Reference(model, device=torch.device("meta"))
    assert model.device.type == "cpu"
    assert reference.__enter__().device.type == "meta"
    with pytest.raises(NotImplementedError, match="meta"):
        # Back to where it rested, for which meta has no data.
        reference.__exit__()


def test_a_checkpoint_holds_the_adapter_alone_and_loads(tiny_folder, tmp_path):
    model = checkpoint(tiny_folder, tmp_path / "step")
    stored = load_file(tmp_path / "step" / "adapter_model.safetensors")
    assert not (tmp_path / "step" / "model.safetensors").exists() and len(stored) == 28
    loaded = load_model(str(tmp_path / "step"), dtype=torch.float32).eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert all(torch.equal(p, lora_weights(model)[name]) for name, p in lora_weights(loaded).items())
    assert all(p.requires_grad == ("lora_" in name) for name, p in loaded.named_parameters())
    tokenizer = load_tokenizer(str(tiny_folder))
    assert load_tokenizer(str(tmp_path / "step"))("1+2=").input_ids == tokenizer("1+2=").input_ids
    for file in (tmp_path / "step").glob("tokenizer*"):
        file.unlink()
    assert load_tokenizer(str(tmp_path / "step"))("1+2=").input_ids == tokenizer("1+2=").input_ids
    # bfloat16 rounds the model, never the adapter.
    half = load_model(str(tmp_path / "step"), dtype=torch.bfloat16)
    assert all(torch.equal(p, lora_weights(model)[name]) for name, p in lora_weights(half).items())
    # What is saved from what was loaded names the same base.
    loaded.save_pretrained(tmp_path / "again")
    settings = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("step", "again")]
    assert [one["base_model_name_or_path"] for one in settings] == [str(tiny_folder)] * 2


def test_a_folder_that_peft_wrote_loads(tiny_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_model(str(tiny_folder), dtype=torch.float32), LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj"])
    )
    fill(model)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=torch.float32).train()
    assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)


def test_adapters_on_adapters_are_merged_below(tiny_folder, tmp_path):
    first = checkpoint(tiny_folder, tmp_path / "first")
    expected = first(IDS).logits
    merge_adapters(first)
    torch.testing.assert_close(first(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert first.state_dict().keys() == load_model(str(tiny_folder), dtype=torch.float32).state_dict().keys()
    assert all(p.requires_grad for p in first.parameters())
    run = prepared(
        tmp_path / "first", model={"lora": LORA.model_dump()}, objective={"type": "grpo", "kl": {"target": "ref", "coef": 0.1}}
    )
    second = run.model.eval()
    fill(second, seed=6)
    with run.reference as reference:
        torch.testing.assert_close(reference(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    second.save_pretrained(tmp_path / "second")
    loaded = load_model(str(tmp_path / "second"), dtype=torch.float32).eval()
    torch.testing.assert_close(loaded(IDS).logits, second(IDS).logits, rtol=0, atol=0)
    assert (loaded(IDS).logits - expected).abs().max() > 0.1
    # Without LoRA in the recipe the whole model goes on, and its reference is the same.
    run = prepared(tmp_path / "first", objective={"type": "grpo", "kl": {"target": "ref", "coef": 0.1}})
    assert all(p.requires_grad for p in run.model.parameters())
    with run.reference as reference:
        torch.testing.assert_close(reference(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_fingerprint_sees_adapter_settings_and_base(tiny_folder, tmp_path):
    base, step = tmp_path / "base", tmp_path / "step"
    shutil.copytree(tiny_folder, base)
    checkpoint(base, step)
    seen = [weights_fingerprint(str(base)), weights_fingerprint(str(step))]

    def changed(path, change):
        kept = path.read_bytes()
        change(path)
        seen.append(weights_fingerprint(str(step)))
        path.write_bytes(kept)
        assert weights_fingerprint(str(step)) == seen[1]

    def scaled(path):
        save_file({name: value * 1.5 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})

    changed(step / "adapter_model.safetensors", scaled)
    changed(base / "model.safetensors", scaled)
    settings = step / "adapter_config.json"
    changed(settings, lambda path: path.write_text(path.read_text().replace('"lora_alpha": 12', '"lora_alpha": 13')))
    assert len(set(seen)) == 5
    # Where the base lies does not matter.
    shutil.move(base, tmp_path / "moved")
    settings.write_text(settings.read_text().replace(str(base), str(tmp_path / "moved")))
    assert weights_fingerprint(str(step)) == seen[1]


def test_a_built_in_base_is_found_on_another_machine(tiny_folder, tmp_path, monkeypatch):
    """By its name or that of its folder: in the cache for one that is made there, in the package for one that ships with it."""
    shutil.copytree(tiny_folder, tmp_path / "cache" / "smollm2-135m-v1")
    monkeypatch.setenv("REALRL_CACHE", str(tmp_path / "cache"))
    shipped = Path(resolve_model("tiny-adder"))
    for folder, bases in (
        (tiny_folder, ("/home/somebody/.cache/realrl/smollm2-135m-v1", "smollm2-135m")),
        (shipped, (f"/home/somebody/realrl/models/{shipped.name}", "tiny-adder")),
    ):
        step = tmp_path / f"on_{folder.name}"
        model = checkpoint(folder, step)
        settings = json.loads((step / "adapter_config.json").read_text())
        for base in bases:
            (step / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
            assert torch.equal(load_model(str(step), dtype=torch.float32).eval()(IDS).logits, model(IDS).logits)


def test_what_cannot_be_used_is_named(tiny_folder, tmp_path, monkeypatch):
    model = load_model(str(tiny_folder), dtype=torch.float32)
    with pytest.raises(ConfigError, match="model.lora.targets = 'nothing'"):
        add_lora(model, LoraSection(targets="nothing"), seed=0)
    with pytest.raises(ConfigError, match="dropout = 0.1.*log-ratio.*set dropout = 0.0"):
        config_of(tiny_folder, model={"lora": {"dropout": 0.1}})
    with pytest.raises(ConfigError, match="add lora = "):
        config_of(tiny_folder, model={"quantize": "4bit"})
    with pytest.raises(ConfigError, match="did you mean model.lora.rank"):
        config_of(tiny_folder, model={"lora": {"rnk": 8}})
    checkpoint(tiny_folder, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())

    def base(path):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": path}))

    base(str(tmp_path / "gone"))
    for load in (weights_fingerprint, lambda path: load_model(path, dtype=torch.float32)):
        with pytest.raises(ConfigError, match="base model of the adapter .* cannot be found.*correct base_model_name_or_path"):
            load(str(tmp_path))
    base(None)
    with pytest.raises(ConfigError, match="does not say which model is the base"):
        load_model(str(tmp_path), dtype=torch.float32)
    base(str(tiny_folder))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    save_file(dict(list(stored.items())[1:]), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="does not fit its base model"):
        load_model(str(tmp_path), dtype=torch.float32)
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'realrl\[lora\]'"):
        load_model(str(tmp_path), dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"pip install 'realrl\[qlora\]'"):
        load_model(str(tiny_folder), dtype=torch.float32, quantize="4bit")


def test_resuming_with_other_adapters_is_refused(tiny_folder, tmp_path):
    from realrl.training.setup import load_policy

    checkpoint(tiny_folder, tmp_path)
    for model in ({}, {"lora": {"rank": 4, "alpha": 12}}):
        with pytest.raises(ConfigError, match="was trained with LoRA of rank 3 and alpha 12"):
            load_policy(config_of(tiny_folder, model=model), torch.device("cpu"), str(tmp_path))
    with pytest.raises(ConfigError, match="was trained with no LoRA"):
        load_policy(config_of(tiny_folder, model={"lora": {}}), torch.device("cpu"), str(tiny_folder))


def test_what_the_adapters_learn_reaches_a_sampler_with_its_own_copy(tiny_folder):
    model, tokenizer = adapted(tiny_folder), load_tokenizer(str(tiny_folder))
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=6, batch_rows=8)

    def sampled(sampler):
        drawn = sampler.sample([(3, 4, 5)], group_size=4, params=params, seeds=range(4))
        return [(rollout.token_ids, rollout.logprobs_sampler) for rollout in drawn]

    sampler = HFSampler(model, tokenizer, copy=True)
    before = sampled(sampler)
    assert before == sampled(HFSampler(load_model(str(tiny_folder), dtype=torch.float32), tokenizer))
    fill(model)
    assert sampled(sampler) == before
    sampler.update_weights(model)
    assert sampled(sampler) != before and sampled(sampler) == sampled(HFSampler(model, tokenizer))


def test_the_memory_estimate_and_the_warning_of_lost_updates(tiny_folder):
    weights = sum(p.numel() for p in load_model(str(tiny_folder), dtype=torch.float32).parameters())
    warned = "without optim.master_weights"

    def notes(**sections):
        return " ".join(prepared(tiny_folder, **sections).notes)

    assert warned in notes(model={"dtype": "bfloat16"})
    assert warned not in notes(model={"dtype": "bfloat16"}, optim={"master_weights": True})
    assert warned not in notes(model={"dtype": "bfloat16", "lora": {}}) and warned not in notes()
    trained = sum(p.numel() for p in lora_weights(adapted(tiny_folder)).values())
    line = notes(model={"lora": LORA.model_dump()})
    assert f"{(weights + trained) / 1e6:,.1f} M parameters, {trained / 1e6:,.2f} M in training" in line


@pytest.fixture(scope="module")
def wide_folder(tiny_folder, tmp_path_factory):
    """Layers of 64 and 128 inputs: whole blocks of 4-bit weights."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    config = AutoConfig.from_pretrained(tiny_folder)
    config.hidden_size, config.intermediate_size = 64, 128
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(str(tiny_folder)).save_pretrained(folder)
    return folder


@NEEDS_BITSANDBYTES
def test_what_bitsandbytes_gets_wrong_on_cpus_is_refused(tiny_folder):
    with pytest.raises(ConfigError, match="32 inputs.*only multiples of 64"):
        load_model(str(tiny_folder), dtype=torch.float32, quantize="4bit")


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_qlora_is_lora_on_the_weights_that_4_bits_hold(wide_folder, tmp_path, checkpointing):
    """Sampling comes first: bitsandbytes would repack the weights there and lose the gradient afterwards."""
    from bitsandbytes.functional import dequantize_4bit

    run = prepared(wide_folder, model={"lora": LORA.model_dump(), "quantize": "4bit", "gradient_checkpointing": checkpointing})
    model = run.model
    fill(model)
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=6, batch_rows=8)
    (rollout,) = run.sampler.sample([(3, 4, 5)], group_size=1, params=params, seeds=[0])
    plain = load_model(str(wide_folder), dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(".base_layer"):
                exact = dequantize_4bit(module.weight.data, module.weight.quant_state)
                kept = plain.get_submodule(name.removesuffix(".base_layer")).weight
                assert 0.08 < (exact - kept).norm() / kept.norm() < 0.1
                kept.copy_(exact)
    shutil.copytree(wide_folder, tmp_path / "plain")
    plain.save_pretrained(tmp_path / "plain")
    found = gradients(model, ragged_batch())
    expected = explicit_gradients(tmp_path / "plain", model, ragged_batch())
    assert found.keys() == expected.keys()
    assert all((found[name] - gradient).norm() / gradient.norm() < 1e-4 for name, gradient in expected.items())
    tokens = torch.tensor(rollout.token_ids)
    logprobs = model.eval()(torch.cat([torch.tensor([3, 4, 5]), tokens])[None]).logits[0, 2:-1].log_softmax(-1)
    torch.testing.assert_close(
        logprobs.gather(1, tokens[:, None])[:, 0], torch.tensor(rollout.logprobs_sampler), rtol=1e-3, atol=1e-3
    )
    # The checkpoint comes back on weights that are quantised again, to the same values.
    model.save_pretrained(tmp_path / "step")
    loaded = load_model(str(tmp_path / "step"), dtype=torch.float32, quantize="4bit").eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    with pytest.raises(ConfigError, match="4 bits"):
        merge_adapters(loaded)
