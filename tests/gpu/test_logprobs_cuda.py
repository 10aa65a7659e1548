"""Log-probabilities on a CUDA device against the same model's own logits in float64 on the CPU."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from realrl.head import Head, token_stats
from realrl.logprobs import response_logprobs
from realrl.types import Batch, Problem, Prompt

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("vocabulary", [500, 40_000])
def test_head(dtype, tolerance, vocabulary):
    """The larger vocabulary takes several tiles, whose logits are computed twice."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(3000, 64, dtype=dtype), torch.randn(vocabulary, 64, dtype=dtype) * 0.1
    ids, upstream = torch.randint(0, vocabulary, (3000,)), torch.randn(3000)
    wide = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    wanted = ((wide[0] @ wide[1].T) / 0.7).log_softmax(-1)
    own = wanted[torch.arange(3000), ids]
    theirs = torch.autograd.grad((own * upstream).sum(), wide)
    leaves = [hidden.cuda().requires_grad_(), weight.cuda().requires_grad_()]
    logprobs, entropy, top1 = token_stats(Head(leaves[1], None, None, 1.0), leaves[0], ids.cuda(), 0.7)
    ours = torch.autograd.grad((logprobs * upstream.cuda()).sum(), leaves)
    assert (logprobs.cpu() - own).abs().max() < tolerance
    assert (entropy.cpu() + (wanted.exp() * wanted).sum(-1)).abs().max() < tolerance
    assert set(top1.unique().tolist()) <= {0.0, 1.0}
    for mine, exact in zip(ours, theirs, strict=True):
        assert (mine.cpu().double() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_layouts(layout, attention):
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=128,
    )
    config._attn_implementation = attention
    model = Qwen2ForCausalLM(config).cuda()
    mask = torch.arange(7)[None] < torch.tensor([4, 1, 7, 2])[:, None]
    batch = Batch(
        prompts=[Prompt(Problem("", "", ""), "", tuple(range(1, 1 + n))) for n in (9, 3)],
        response_ids=torch.randint(0, 50, mask.shape),
        loss_mask=mask,
        group_ids=torch.tensor([1, 0, 1, 0]),
        rewards=torch.zeros(4),
        levels=torch.ones(4, dtype=torch.long),
        logprobs_sampler=torch.zeros(mask.shape),
    )
    plain = deepcopy(model).cpu().double()
    plain.set_attn_implementation("eager")
    wanted = torch.zeros(())
    for row, length in enumerate(mask.sum(1).tolist()):
        prompt = list(batch.prompts[int(batch.group_ids[row])].token_ids)
        response = batch.response_ids[row, :length].tolist()
        logits = plain(input_ids=torch.tensor([prompt + response])).logits[0]
        wanted = wanted + (logits[len(prompt) - 1 : -1] / 0.6).log_softmax(-1)[range(length), response].pow(2).sum()
    wanted.backward()
    names = ("response_ids", "loss_mask", "group_ids", "rewards", "levels", "logprobs_sampler")
    batch = replace(batch, **{name: getattr(batch, name).cuda() for name in names})
    loss = response_logprobs(model, batch, temperature=0.6, layout=layout).logprobs.pow(2).sum()
    loss.backward()
    assert abs(float(loss) - float(wanted)) < 1e-4 * float(wanted)
    for mine, exact in zip(model.parameters(), plain.parameters(), strict=True):
        assert (mine.grad.cpu().double() - exact.grad).norm() < 1e-4 * exact.grad.norm() + 1e-7
