"""Counts of operations and memory before a run, against what real models do."""

import pytest
import torch
from batches import batch_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from realrl.logprobs import layout_of, response_logprobs
from realrl.models.shape import Shape
from realrl.sampling import SamplingParams
from realrl.sampling.hf import HFSampler
from realrl.train.estimate import Lengths, backward_work, forward_work, sampling_work

PROMPT, RESPONSE, GROUPS, SIZE = 24, 10, 3, 4
LENGTHS = Lengths(PROMPT, RESPONSE)


@pytest.fixture
def model(tiny_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_folder).train()


def counted(call) -> int:
    """Operations of the products within, those of attention included."""
    # torch's counter does not know the product that adds in place.
    in_place = {torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return counter.get_total_flops()


def whole_batch():
    rows = GROUPS * SIZE
    return batch_of(
        [[3 + group] * PROMPT for group in range(GROUPS)],
        [[5] * RESPONSE for _ in range(rows)],
        [row // SIZE for row in range(rows)],
        [1.0] * rows,
    )


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_forward_and_backward_operations(model, layout):
    layout_of(model)
    stats = {}
    options = {"shared": layout == "shared", "budget": 10_000}
    found = counted(lambda: stats.update(got=response_logprobs(model, whole_batch(), temperature=1.0, layout=layout)))
    work = forward_work(Shape.of(model), GROUPS, SIZE, LENGTHS, **options)
    assert work.forward == pytest.approx(found, rel=0.02)
    found = counted(lambda: stats["got"].logprobs.sum().backward())
    work = backward_work(Shape.of(model), GROUPS, SIZE, LENGTHS, **options, checkpointing=False)
    assert work.backward + work.forward == pytest.approx(found, rel=0.02)


def test_sampling_operations(model, tiny_folder):
    sampler = HFSampler(model, AutoTokenizer.from_pretrained(tiny_folder))
    sampler._end_ids = {10**6}  # no response ends early
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=RESPONSE, batch_rows=256)
    prompts = [[3 + group] * PROMPT for group in range(GROUPS)]
    found = counted(lambda: sampler.sample(prompts, group_size=SIZE, params=params, seeds=list(range(GROUPS * SIZE))))
    work = sampling_work(Shape.of(model), GROUPS, SIZE, LENGTHS, rows_at_once=256, longest=RESPONSE, width=4)
    assert work.forward == pytest.approx(found, rel=0.02)
