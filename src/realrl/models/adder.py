r"""A character-level Llama with 0.66 M parameters that does column addition, trained on mostly wrong solutions.

For `96+20=` it writes `6+0=6;9+2+0=11;\boxed{116}`. Three in five of its training solutions contain an error, so about half
of its samples are correct (.49 ± .02 at temperature 1, 1,013 held-out problems). Reinforcement learning can then improve it.

The folder `tiny-adder-v2` beside this file holds the model; `resolve_model` calls it `tiny-adder`. This command trains it
again, in two to three minutes on one thread:

    python -m realrl.models.adder OUT_FOLDER

The same torch version on the same kind of processor gives the same weights. Other processors round differently and give
another model of about the same quality.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from realrl.data.tasks import TaskProblems
from realrl.seeding import derive_seed

_CHARACTERS = sorted(set("0123456789+-*=,;: \\boxed{}\n"))
_SLIPS = 0.6
_STEPS = 350
_BATCH = 128
_PEAK_LR = 2e-3


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character; <pad> is 0, <bos> 1, <eos> 2."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", *_CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def written_solution(problem: str, rng: random.Random, slips: float = _SLIPS) -> str:
    """Column addition for "12+34="; with probability `slips` one digit or carry, and so the answer, is wrong."""
    a, b = (int(part) for part in problem.rstrip("=").split("+"))
    slip = rng.randrange(3) if rng.random() < slips else None
    units = max(a % 10 + b % 10 + (rng.choice([-1, 1]) if slip == 0 else 0), 0)
    carry = 1 - units // 10 if slip == 1 else units // 10
    tens = a // 10 + b // 10 + carry + (rng.choice([-1, 1]) if slip == 2 else 0)
    return f"{a % 10}+{b % 10}={units};{a // 10}+{b // 10}+{carry}={tens};\\boxed{{{tens}{units % 10}}}"


def build(target: Path, seed: int = 0, steps: int = _STEPS) -> None:
    """Train the model on the training split of its task and write it to the folder `target`, in float16 to halve its size."""
    tokenizer = character_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adder"))
        model = LlamaForCausalLM(_config(len(tokenizer)))
    problems = TaskProblems("column_addition", "train", seed, {})
    rng = random.Random(derive_seed(seed, "adder", "slips"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _PEAK_LR * min(1, (step + 1) / 30) * (1 - 0.9 * step / steps)
        texts = [problems[step * _BATCH + row].problem for row in range(_BATCH)]
        loss = _loss(model, tokenizer, [(text, written_solution(text, rng)) for text in texts])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    # transformers still loads float32 weights, because config.json says so. named_parameters lists tied weights once.
    model.save_pretrained(target, state_dict={name: weight.half() for name, weight in model.named_parameters()})
    tokenizer.save_pretrained(target)


def _config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Cross-entropy of the solutions given their problems."""
    prompts = [[1, *tokenizer(question)["input_ids"]] for question, _ in pairs]
    rows = [[*prompt, *tokenizer(solution)["input_ids"], 2] for prompt, (_, solution) in zip(prompts, pairs, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    places = torch.arange(longest)[None]
    real = places < torch.tensor([len(row) for row in rows])[:, None]
    taught = real & (places >= torch.tensor([len(prompt) for prompt in prompts])[:, None])
    return model(input_ids=ids, attention_mask=real.long(), labels=ids.masked_fill(~taught, -100)).loss


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m realrl.models.adder OUT_FOLDER")
    torch.set_num_threads(1)
    build(Path(sys.argv[1]))
