"""The head's log-probabilities on a device against float64 on the CPU."""

import pytest
import torch
from device import DEVICE, marks

from realrl.models.head import Head, token_stats

pytestmark = marks
TOKENS = 3000 if DEVICE.type == "cuda" else 300


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("vocabulary", [500, 40_000])
def test_head(dtype, tolerance, vocabulary):
    """The larger vocabulary takes several tiles, whose logits are computed twice."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, 64, dtype=dtype), torch.randn(vocabulary, 64, dtype=dtype) * 0.1
    ids, upstream = torch.randint(0, vocabulary, (TOKENS,)), torch.randn(TOKENS)
    wide = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    wanted = ((wide[0] @ wide[1].T) / 0.7).log_softmax(-1)
    own = wanted[torch.arange(TOKENS), ids]
    theirs = torch.autograd.grad((own * upstream).sum(), wide)
    leaves = [hidden.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_()]
    logprobs, entropy, top1 = token_stats(Head(leaves[1], None, None, 1.0), leaves[0], ids.to(DEVICE), 0.7)
    ours = torch.autograd.grad((logprobs * upstream.to(DEVICE)).sum(), leaves)
    assert (logprobs.cpu() - own).abs().max() < tolerance
    assert (entropy.cpu() + (wanted.exp() * wanted).sum(-1)).abs().max() < tolerance
    assert set(top1.unique().tolist()) <= {0.0, 1.0}
    for mine, exact in zip(ours, theirs, strict=True):
        assert (mine.cpu().double() - exact).norm() < tolerance * exact.norm()
