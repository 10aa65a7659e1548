"""Every row of a padded batch must give the log-probabilities of the same row alone."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from realrl.logprobs import response_logprobs, shares_prompts
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


@pytest.fixture(params=["qwen2", "llama", "gpt2"])
def model(request):
    torch.manual_seed(0)
    if request.param == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    elif request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    else:
        model = GPT2LMHeadModel(GPT2Config(**GPT2))
    model.eval()
    # Random initial logits are nearly flat; sharper ones make a wrong position visible.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def ragged_batch(seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    prompt_lengths, group_ids, lengths = [3, 9, 1], [1, 0, 2, 1, 1, 0], [4, 1, 7, 2, 5, 3]
    prompts = [
        Prompt(Problem(str(i), "", ""), "", tuple(torch.randint(0, 50, (n,), generator=rng).tolist()))
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
    """Log-probabilities and entropy of one row, unpadded, through the plain forward pass in float64."""
    length = int(batch.loss_mask[row].sum())
    prompt = list(batch.prompts[int(batch.group_ids[row])].token_ids)
    response = batch.response_ids[row, :length].tolist()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    table = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return table[range(length), response], -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_padded_rows_equal_rows_alone(model, share, temperature):
    batch = ragged_batch()
    stats = response_logprobs(model, batch, temperature=temperature, share_prompts=share)
    assert stats.logprobs.dtype == torch.float32
    for row in range(len(batch)):
        length = int(batch.loss_mask[row].sum())
        logprobs, entropy = alone(model, batch, row, temperature)
        torch.testing.assert_close(stats.logprobs[row, :length].double(), logprobs, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(stats.entropy[row, :length].double(), entropy, atol=2e-5, rtol=1e-5)
        assert not stats.logprobs[row, length:].any()


def test_gradient_through_the_shared_prompt_is_the_full_gradient(model):
    batch = ragged_batch(1)
    gradients = []
    for share in (True, False):
        model.zero_grad()
        response_logprobs(model, batch, temperature=0.6, share_prompts=share).logprobs.pow(2).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


def test_single_token_responses(model):
    batch = ragged_batch()
    rows = torch.tensor([1])
    from realrl.train.batching import select_rows

    one = select_rows(batch, rows)
    assert one.response_ids.shape == (1, 1)
    logprobs, _ = alone(model, batch, 1, 1.0)
    stats = response_logprobs(model, one, temperature=1.0)
    torch.testing.assert_close(stats.logprobs[0].double(), logprobs, atol=2e-5, rtol=1e-5)


def test_checkpointing_turns_prompt_sharing_off(model):
    assert shares_prompts(model)
    model.gradient_checkpointing_enable()
    model.train()
    assert not shares_prompts(model)
