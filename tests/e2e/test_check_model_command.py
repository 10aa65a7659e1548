"""`realrl check-model`: exact, refused by name, or wrong, with an exit status to go by."""

import forked
import pytest
import torch
from transformers import CpmAntConfig, CpmAntForCausalLM, MambaConfig, MambaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from realrl.models import load_tokenizer
from realrl.training.check_model import CHECKS, Subject, findings


@pytest.fixture
def saved(tiny_folder, tmp_path):
    def save(model):
        for part in (model, load_tokenizer(str(tiny_folder))):
            part.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    torch.manual_seed(0)
    return save


def parts(done):
    return {line[:14].strip(): line[14:].split()[0] for line in done.stdout.splitlines()}


def test_a_sound_model_is_exact_in_every_part():
    done = forked.realrl("check-model", "tiny-adder", "--all")
    assert done.returncode == 0, done.stderr
    assert parts(done) == dict.fromkeys(CHECKS, "exact")


def test_a_model_with_a_state_trains_exactly_and_says_that_our_sampler_cannot_sample_from_it(saved):
    folder = saved(MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4)))
    done = forked.realrl("check-model", str(folder))
    assert done.returncode == 0, done.stderr
    assert parts(done) == {"logprobs": "exact", "gradient": "exact", "checkpointing": "exact", "sampling": "refused"}
    assert "cannot sample exactly from MambaForCausalLM with its cache" in done.stdout


def test_a_model_that_is_refused_ends_with_status_1(saved):
    config = CpmAntConfig(vocab_size=64, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=64, num_hidden_layers=2)
    done = forked.realrl("check-model", str(saved(CpmAntForCausalLM(config))))
    assert done.returncode == 1 and set(parts(done).values()) <= {"refused"}
    done = forked.realrl("check-model", "tiny-adder", "--longest", "5")
    assert done.returncode == 1 and "at least 38 tokens, got 5" in done.stderr


def test_a_wrong_number_is_called_wrong(saved, tmp_path):
    """The check's reference is another model than the one that is checked."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    folder = saved(Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, initializer_range=0.3)))
    subject = Subject(str(folder), tmp_path)
    subject.plain = lambda *_, **__: Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, initializer_range=0.3)).eval()
    found = dict(findings(subject, ("logprobs", "gradient")))
    assert {part.status for part in found.values()} == {"WRONG"} and "off by" in found["logprobs"].message
