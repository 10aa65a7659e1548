"""The model, the prompts and the comparison of the tests with vLLM."""

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from realrl.models.adder import character_tokenizer
from realrl.sampling import SamplingParams

# The last two share more than a block (128 tokens on CPU) of the prefix cache.
LONG = [3 + i % 11 for i in range(150)]
PROMPTS = [[1, 5, 6], [1, 4, 8, 9, 12, 7, 3], [1], [*LONG, 4], [*LONG, 5, 9]]
GROUP = 4
SETTINGS = SamplingParams(temperature=0.8, max_new_tokens=24)
SEEDS = [2**62 + 977 * index for index in range(len(PROMPTS) * GROUP)]


def make_model(tied: bool) -> Qwen2ForCausalLM:
    """A random Qwen2 with large weights (its distributions are far from flat) and two end tokens."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            eos_token_id=2,
            tie_word_embeddings=tied,
        )
    )
    shake(model, 0.05)
    newline = tokenizer.convert_tokens_to_ids("\n")
    model.generation_config = GenerationConfig(eos_token_id=[2, newline], pad_token_id=0)
    return model.eval()


def shake(model: torch.nn.Module, size: float) -> None:
    """Moves every parameter by an amount that shows in the log-probabilities."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)


def run(sampler, prompts=PROMPTS, seeds=SEEDS, params=SETTINGS, group_size=GROUP, on_finished=None):
    return sampler.sample(prompts, group_size=group_size, params=params, seeds=seeds, on_finished=on_finished)


def gap(model, rollouts, temperature=SETTINGS.temperature, prompts=PROMPTS) -> float:
    """Largest difference to the log-probabilities of a full forward of transformers of each row alone."""
    gaps = []
    for rollout in rollouts:
        prompt = prompts[rollout.prompt_index]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *rollout.token_ids]])).logits[0, len(prompt) - 1 : -1]
        table = (logits.double() / temperature).log_softmax(-1)
        gaps += [abs(table[t, token].item() - rollout.logprobs_sampler[t]) for t, token in enumerate(rollout.token_ids)]
    return max(gaps)
