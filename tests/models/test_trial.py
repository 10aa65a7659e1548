"""A model is exact in a layout and with its cache, or refused by name: models that are wrong in one way each."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from realrl.errors import ModelError, TrainingError
from realrl.models import load_tokenizer, too_long_for
from realrl.models.head import head_of
from realrl.models.logprobs import layout_of, response_logprobs
from realrl.models.rotary import fix_rotary
from realrl.sampling import HFSampler, SamplingParams
from realrl.types import Batch, Problem, Prompt
from recipes import config_of

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
SHARP = SIZES | {"num_key_value_heads": 2, "initializer_range": 0.3}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}


def made(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


class Neighbourly(Qwen2ForCausalLM):
    """What a row's tokens are depends on how many other rows there are."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * (1 + len(out.logits))
        return out

    def get_output_embeddings(self):
        return None


class WithoutPositions(LlamaForCausalLM):
    """Fails past 20 tokens, as learned positions do."""

    def forward(self, input_ids, **kwargs):
        if input_ids.shape[1] > 20:
            raise IndexError("index out of range in self")
        return super().forward(input_ids, **kwargs)


class Capped(Qwen2ForCausalLM):
    """Caps logits, which its configuration does not say, beyond what random weights reach."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out


def batch_of_one(prompt, response) -> Batch:
    return Batch(
        prompts=[Prompt(Problem("", "", ""), "", tuple(prompt))],
        response_ids=torch.tensor([response]),
        loss_mask=torch.ones(1, len(response), dtype=torch.bool),
        group_ids=torch.zeros(1, dtype=torch.long),
        rewards=torch.ones(1),
        levels=torch.zeros(1, dtype=torch.long),
        logprobs_sampler=torch.zeros(1, len(response)),
    )


def plain(model, prompt, response) -> Tensor:
    with torch.no_grad():
        table = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return table[range(len(response)), response]


def test_rows_that_depend_on_their_neighbours_are_refused():
    with pytest.raises(ModelError, match=r"Neighbourly cannot be trained exactly: .* nats off those of its rows alone"):
        layout_of(made(Neighbourly, Qwen2Config(**SHARP)), "padded")


def test_a_model_that_fails_on_the_longest_row_is_refused_with_its_length():
    model = made(WithoutPositions, LlamaConfig(**SHARP))
    with pytest.raises(ModelError, match=r"itself fails on a row of 24 tokens \(IndexError: index out"):
        layout_of(model, longest=24)


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (made(GPT2LMHeadModel, GPT2Config(**GPT2, n_positions=20)), 20),
        (made(MptForCausalLM, MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=50, max_seq_len=20)), 20),
    ],
    ids=["gpt2", "mpt"],
)
def test_positions_go_by_several_names(model, positions):
    assert too_long_for(model, 10, 10) is None and f"exceed the {positions} positions" in (too_long_for(model, 10, 11) or "")
    assert layout_of(model, longest=20)
    with pytest.raises(ModelError, match="fails on a row of 21 tokens"):
        layout_of(model, longest=21)


def test_a_cap_that_shows_only_at_large_logits_is_kept():
    model = made(Capped, Qwen2Config(**SHARP))
    torch.nn.init.normal_(model.lm_head.weight, std=0.05)
    assert head_of(model) is None and head_of(made(Qwen2ForCausalLM, Qwen2Config(**SHARP))) is not None
    # The weights grow, as in training.
    with torch.no_grad():
        model.lm_head.weight.mul_(400)
    prompt, response = [3, 5, 7, 9], [11, 4, 8]
    got = response_logprobs(model, batch_of_one(prompt, response), temperature=1.0).logprobs[0]
    torch.testing.assert_close(got.double(), plain(model, prompt, response), atol=1e-4, rtol=1e-4)


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
ROTARY = {
    "longrope": lambda: (
        Phi3ForCausalLM,
        Phi3Config(
            **SHARP,
            pad_token_id=0,
            max_position_embeddings=64,
            original_max_position_embeddings=32,
            rope_parameters=LONGROPE | {"original_max_position_embeddings": 32},
        ),
    ),
    "dynamic": lambda: (
        LlamaForCausalLM,
        LlamaConfig(
            **SHARP, max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        ),
    ),
}


@pytest.mark.parametrize("kind", ROTARY)
def test_rotary_embeddings_that_depend_on_the_call_are_fixed(kind):
    model = made(*ROTARY[kind]())
    row = (torch.arange(40) * 7 % 50)[None]
    with torch.no_grad():
        short, long = model(input_ids=row[:, :8]).logits, model(input_ids=row).logits
        assert not torch.allclose(long[:, :8], short, atol=1e-2)
        assert fix_rotary(model, 32) is None
        torch.testing.assert_close(model(input_ids=row[:, :8]).logits, short)
        assert kind in (fix_rotary(model, 40) or "")
        torch.testing.assert_close(model(input_ids=row).logits, long, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(input_ids=row[:, :8]).logits, long[:, :8], atol=1e-4, rtol=1e-4)
    assert layout_of(model, longest=40)


@pytest.mark.parametrize("kind", ROTARY)
def test_rotary_embeddings_that_are_not_fixed_are_refused_where_rows_pass_their_length(kind):
    model = made(*ROTARY[kind]())
    assert layout_of(model, longest=32)
    with pytest.raises(ModelError, match="nats off those of its rows alone"):
        layout_of(model, longest=40)


STATES = {
    "mamba": lambda: made(MambaForCausalLM, MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4)),
    "openai-gpt": lambda: made(OpenAIGPTLMHeadModel, OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=50)),
}


@pytest.mark.parametrize("name", STATES)
def test_a_sampler_says_whose_cache_it_cannot_use(name, tiny_folder):
    model = STATES[name]()
    with pytest.raises(ModelError, match=f"cannot sample exactly from {type(model).__name__} with its cache"):
        HFSampler(model, load_tokenizer(str(tiny_folder)))


def test_a_sampler_is_tried_again_for_longer_rows(tiny_folder):
    model = made(*ROTARY["longrope"]())
    sampler = HFSampler(model, load_tokenizer(str(tiny_folder)), longest=32)
    with pytest.raises(ModelError, match="cannot sample exactly from Phi3ForCausalLM"):
        sampler.sample([[3, 4]], group_size=1, params=SamplingParams(1.0, max_new_tokens=38), seeds=[0])


def test_a_sampler_of_other_weights_stops_the_run_at_its_first_step(tiny_folder):
    from realrl.training.batching import make_batch
    from realrl.training.check_sampler import check_sampler
    from realrl.training.distributed import World
    from realrl.training.progress import Progress
    from realrl.training.rollouts import Collector
    from realrl.training.setup import prepare
    from realrl.training.update import update_policy

    for wrong in (False, True):
        config = config_of(tiny_folder, sampling={"steps_ahead": 1, "dtype": "same"}, model={"autocast": "none"})
        run = prepare(config, World())
        if wrong:
            with torch.no_grad():
                for parameter in run.sampler._model.parameters():
                    parameter.add_(torch.randn_like(parameter))
        with Collector(run) as collector:
            collected = collector.collect(0)
        run.grader.close()
        batch = make_batch(collected.prompts, collected.rollouts, collected.verdicts, run.device)
        batch.rewards[::2] = 1 - batch.rewards[::2]
        first = update_policy(run, batch, Progress(seed=0))[0]
        with pytest.raises(TrainingError, match="nats a token on the first rollouts.*check-model") if wrong else nullcontext():
            check_sampler(run.config, batch, first)
