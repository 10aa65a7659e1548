"""The zoo of tiny models: what it draws is fixed, sharp, and sensitive to what attention reads."""

import math

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from zoo import EXCEPTIONS, FAMILIES, LARGEST, LEFT_OUT, VARIANTS, VOCABULARY, WINDOW, build


@pytest.mark.parametrize("name", ["llama", "mixtral, jitter", "gpt2", "mamba", "qwen2, window"])
def test_a_model_is_tiny_and_sharp_and_reads_its_prompt(name):
    model = build(FAMILIES[name])
    ids = torch.arange(3, 3 + 2 * WINDOW)[None]
    other = ids.clone()
    other[0, WINDOW] += 50
    with torch.no_grad():
        logprobs, changed = (model(input_ids=row).logits[0, -1].double().log_softmax(-1) for row in (ids, other))
    assert model.num_parameters() <= LARGEST
    assert 0.05 < -(logprobs.exp() * logprobs).sum() / math.log(VOCABULARY) < 0.9
    assert (logprobs - changed).abs().max() > 1e-2


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    one, again, other = (build(FAMILIES["qwen3"], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_every_name_is_an_architecture_of_transformers():
    named = {*LEFT_OUT, *EXCEPTIONS, *(name.partition(",")[0] for name in VARIANTS)}
    assert named <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
