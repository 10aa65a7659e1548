"""Algorithm 1 of "Rewards as Labels" (arXiv 2602.05630) in one file: torch, transformers, `realrl.Real` and `realrl.verify`.

    python examples/real_loop.py                # a tiny model learns to add: about two minutes on a CPU, no download
    python examples/real_loop.py --model Qwen/Qwen2.5-0.5B-Instruct --digits 5 --max-new-tokens 256 --lr 2e-6 --device cuda

`--model` takes a hub name, a folder, or a built-in model (tiny-adder, smollm2-135m). For a task of your own change
`draw_problems` and `prompt`. `realrl train` runs the same algorithm with recipes, checkpoints and a record of the run.

Tensors end in their shape: N rollouts, L tokens of prompt and response, T tokens of the response.
"""

import argparse
import random
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import realrl
from realrl.models import resolve_model  # the folder of a built-in model; hub names and folders come back as they are


class Problem(NamedTuple):
    question: str
    answer: str


class Rollouts(NamedTuple):
    ids_NL: torch.Tensor
    attention_NL: torch.Tensor
    mask_NT: torch.Tensor  # True on response tokens, up to the end token
    texts: list[str]


def draw_problems(rng: random.Random, digits: int, count: int, without: tuple[Problem, ...] = ()) -> tuple[Problem, ...]:
    """`count` different sums of two numbers, none of them in `without`."""
    drawn: dict[Problem, None] = {}
    while len(drawn) < count:
        a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        problem = Problem(f"{a}+{b}=", str(a + b))
        if problem not in without:
            drawn[problem] = None
    return tuple(drawn)


def prompt(problem: Problem, tokenizer) -> str:
    """The text that the model continues, in its chat template where it has one."""
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") + problem.question
    message = {"role": "user", "content": problem.question + r" Reply with the answer in \boxed{}."}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def sample(model, tokenizer, problems: tuple[Problem, ...], group_size: int, max_new_tokens: int) -> Rollouts:
    """`group_size` responses to each problem from the model's own distribution, one problem after the other."""
    prompts = [prompt(problem, tokenizer) for problem in problems for _ in range(group_size)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    ids, attention = inputs["input_ids"], inputs["attention_mask"]
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": tokenizer.pad_token_id}
    ids_NL = model.generate(input_ids=ids, attention_mask=attention, max_new_tokens=max_new_tokens, **options)
    response_NT = ids_NL[:, ids.shape[1] :]
    end_tokens = torch.tensor(model.generation_config.eos_token_id, device=model.device)  # one or several
    ends_NT = torch.isin(response_NT, end_tokens).long()
    mask_NT = ends_NT.cumsum(dim=1) - ends_NT == 0  # no end token before this one
    texts = [tokenizer.decode(row[kept], skip_special_tokens=True) for row, kept in zip(response_NT, mask_NT, strict=True)]
    return Rollouts(ids_NL, torch.cat([attention, mask_NT.long()], dim=1), mask_NT, texts)


def logprobs(model, rollouts: Rollouts, rows: torch.Tensor) -> torch.Tensor:
    """log π of every response token of these rows, in nats, with gradient."""
    ids, attention, width = rollouts.ids_NL[rows], rollouts.attention_NL[rows], rollouts.mask_NT.shape[1]
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)  # prompts are padded on the left
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, -width - 1 : -1]
    return logits.float().log_softmax(dim=-1).gather(2, ids[:, -width:, None]).squeeze(2)


@torch.no_grad()
def measure(model, rollouts: Rollouts, rows: torch.Tensor, micro_batch: int) -> torch.Tensor:
    """The same without gradient, a micro-batch at a time."""
    return torch.cat([logprobs(model, rollouts, part) for part in rows.split(micro_batch)])


def accuracy(model, tokenizer, problems: tuple[Problem, ...], max_new_tokens: int) -> float:
    """The share of problems whose one sampled response is right."""
    texts = sample(model, tokenizer, problems, 1, max_new_tokens).texts
    return sum(map(realrl.verify, texts, [problem.answer for problem in problems])) / len(problems)


def train(args: argparse.Namespace) -> list[float]:
    """Algorithm 1. Returns the accuracy on held-out problems before training and after every `eval_every` rounds."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    folder = resolve_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # eval() turns dropout off: right after sampling the policy is the old policy.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(args.device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    real = realrl.Real(tau=args.tau)
    held_out = draw_problems(rng, args.digits, args.held_out)
    accuracies = [accuracy(model, tokenizer, held_out, args.max_new_tokens)]
    print(f"before training: held-out accuracy {accuracies[0]:.3f}", flush=True)

    for round_number in range(1, args.rounds + 1):
        # Lines 4 to 6: a batch of prompts, and a group of G rollouts for each from the policy, which becomes the old policy.
        batch = draw_problems(rng, args.digits, args.prompts, without=held_out)
        rollouts = sample(model, tokenizer, batch, args.group_size, args.max_new_tokens)
        all_rows = torch.arange(len(rollouts.texts))
        groups = all_rows // args.group_size
        old_NT = measure(model, rollouts, all_rows, args.micro_batch)

        # Line 7: the verifier's labels, 1 or 0, partition each group into right and wrong rollouts.
        labels = torch.tensor(list(map(realrl.verify, rollouts.texts, [batch[group].answer for group in groups]))).float()

        # Lines 8 to 11: one update for each mini-batch of whole groups.
        for number, prompts in enumerate(torch.arange(args.prompts).chunk(args.mini_batches)):
            mini = torch.isin(groups, prompts).nonzero().flatten()
            # At the first update the policy still is the old policy; later its log-probabilities are measured anew.
            policy = None if number == 0 else measure(model, rollouts, mini, args.micro_batch)
            plan = real.plan(old_NT[mini], rollouts.mask_NT[mini], labels[mini], groups[mini], policy)
            if not plan.active.any():
                continue  # every group is all right or all wrong: no gradient
            # Any split of the other rows gives the same gradient.
            for rows in plan.active.nonzero().flatten().cpu().split(args.micro_batch):
                plan.loss(logprobs(model, rollouts, mini[rows]), rows).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        line = f"round {round_number}: {labels.mean():.3f} of the rollouts right"
        if round_number % args.eval_every == 0:
            accuracies.append(accuracy(model, tokenizer, held_out, args.max_new_tokens))
            line += f", held-out accuracy {accuracies[-1]:.3f}"
        print(line, flush=True)
    return accuracies


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"model": "tiny-adder", "device": "cpu", "seed": 0, "digits": 2, "held_out": 256, "eval_every": 10}
    defaults |= {"rounds": 60, "prompts": 16, "group_size": 8, "max_new_tokens": 48}
    defaults |= {"mini_batches": 2, "micro_batch": 32, "lr": 1e-4, "tau": 0.5}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    return parser


if __name__ == "__main__":
    train(options().parse_args())
