"""How close realrl comes to the machine's limit, how its cost grows, and what goes on outside the model.

    python benchmarks/limits.py [--threads 1] [--repeats 3] [--sections NAME,NAME]

share        achieved FLOP/s of forward, backward and sampling as a share of plain matrix products of the very shapes that the
             model's linear layers and head have there, timed in the same process
groups       seconds per token for 4, 8 and 16 rollouts a group, at the same number of response tokens in all: per response
             token, and per computed token, which counts each group's prompt once
length       seconds per response token against the length of responses, at the same number of response tokens in all
vocabulary   seconds of the log-probabilities and their gradient against the vocabulary
bookkeeping  share of a step's time that is neither sampling nor the model's forward, backward or the optimizer
memory       peak memory that log-probabilities and their gradient add, against the vocabulary; processes of their own
`exponent` is the slope of a straight line through log(cost) over log(size): of a whole quantity 1 is linear, of a cost per
token 0 is flat. Medians of `--repeats` interleaved runs, in CPU seconds of the process. Prints JSON. On a GPU: gpu_check.py.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from machine import cpu_model, forget_peak, peak_bytes, versions
from made_up import HIDDEN, LAYERS, PROMPT, gradient_step, make_batch, make_model, make_sampler, sample


def seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def medians(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """CPU seconds of each function; they take turns, after one round that warms up."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for own, function in zip(times, functions, strict=True):
            taken = seconds(function)
            if repeat:
                own.append(taken)
    return [statistics.median(own) for own in times]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return round(statistics.linear_regression(xs, ys).slope, 3)


def linear_shapes(model) -> list[tuple[int, int]]:
    """(in, out) of every linear layer but the head, which sees other tokens."""
    import torch

    head = model.get_output_embeddings()
    return [
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def products(shapes: Sequence[tuple[int, int]], tokens: int, kinds: str) -> Callable[[], None]:
    """Plain matrix products of these layers on `tokens` rows: f forward, b the two of backward."""
    import torch

    made = [(torch.randn(tokens, i), torch.randn(o, i), torch.randn(tokens, o)) for i, o in sorted(set(shapes))]
    counts = [shapes.count(shape) for shape in sorted(set(shapes))]

    def run() -> None:
        for (x, w, y), count in zip(made, counts, strict=True):
            for _ in range(count):
                if "f" in kinds:
                    torch.mm(x, w.T)
                if "b" in kinds:
                    torch.mm(y, w)
                    torch.mm(y.T, x)

    return run


def flops(shapes: Sequence[tuple[int, int]], tokens: int) -> float:
    return 2.0 * tokens * sum(i * o for i, o in shapes)


def share_section(repeats: int) -> dict:
    """Only products of the linear layers and the head count as work done: attention, norms and the rest are overhead here."""
    import torch

    from realrl.models.logprobs import response_logprobs

    vocabulary, groups, group_size, length = 8192, 8, 8, 64
    model = make_model(vocabulary)
    model.train()
    batch = make_batch(groups, group_size, length, vocabulary)
    sampler, rows = make_sampler(model), groups * group_size
    shapes, head = linear_shapes(model), [(HIDDEN, vocabulary)]
    body_tokens, head_tokens = groups * PROMPT + rows * (length - 1), rows * length
    kept: list = []

    def forward() -> None:
        kept[:] = [response_logprobs(model, batch, temperature=1.0).logprobs.sum()]

    def backward() -> None:
        model.zero_grad()
        kept.pop().backward()

    body_f, head_f = products(shapes, body_tokens, "f"), products(head, head_tokens, "f")
    body_b, head_b = products(shapes, body_tokens, "b"), products(head, head_tokens, "b")
    prefill, decode = products(shapes, groups * PROMPT, "f"), products([*shapes, *head], rows, "f")

    def decode_all() -> None:
        prefill()
        for _ in range(length - 1):
            decode()

    forward_s, backward_s, sampling_s, body_f_s, head_f_s, body_b_s, head_b_s, decode_s = medians(
        [forward, backward, lambda: sample(sampler, batch, length), body_f, head_f, body_b, head_b, decode_all], repeats
    )
    work = flops(shapes, body_tokens) + flops(head, head_tokens)
    report = {}
    for name, took, limit, amount in (
        ("forward", forward_s, body_f_s + head_f_s, work),
        ("backward", backward_s, body_b_s + head_b_s, 2 * work),
        ("sampling", sampling_s, decode_s, work),
    ):
        report[name] = {
            "seconds": round(took, 4),
            "gflops": round(amount / took / 1e9, 1),
            "matmul_gflops": round(amount / limit / 1e9, 1),
            "share_of_matmul": round(limit / took, 3),
        }
    kind = {"hidden": HIDDEN, "layers": LAYERS, "vocabulary": vocabulary, "rollouts": rows, "response_length": length}
    return {**kind, "dtype": str(torch.float32), **report}


def step_cost(model, batch) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        gradient_step(model).backward(batch, None, None)

    return run


def groups_section(repeats: int) -> dict:
    """128 rollouts of 32 tokens in groups of 4, 8 and 16: the update's cost, and sampling's."""
    vocabulary, rows, length = 2048, 128, 32
    model = make_model(vocabulary)
    model.train()
    sampler, sizes = make_sampler(model), (4, 8, 16)
    batches = [make_batch(rows // size, size, length, vocabulary) for size in sizes]
    update = medians([step_cost(model, batch) for batch in batches], repeats)
    sampling = medians([lambda batch=batch: sample(sampler, batch, length) for batch in batches], repeats)
    whole = [a + b for a, b in zip(update, sampling, strict=True)]

    def row(costs: Sequence[float]) -> dict:
        responses = [1e6 * cost / (rows * length) for cost in costs]
        # A prompt is computed once a group, so smaller groups compute more prompt tokens for the same responses.
        computed = [1e6 * cost / (rows * length + rows // size * PROMPT) for cost, size in zip(costs, sizes, strict=True)]
        return {
            name: {
                "microseconds": dict(zip(map(str, sizes), (round(cost, 2) for cost in per_token), strict=True)),
                "largest_over_smallest": round(max(per_token) / min(per_token), 3),
                "exponent": exponent(sizes, per_token),
            }
            for name, per_token in (("per_response_token", responses), ("per_computed_token", computed))
        }

    return {"response_tokens": rows * length, "update": row(update), "sampling": row(sampling), "both": row(whole)}


def length_section(repeats: int) -> dict:
    """4,096 response tokens as many short or few long responses, two groups at least."""
    vocabulary, tokens, lengths = 2048, 4096, (32, 64, 128, 256)
    model = make_model(vocabulary)
    model.train()
    batches = [make_batch(tokens // size // 8, 8, size, vocabulary) for size in lengths]
    costs = medians([step_cost(model, batch) for batch in batches], repeats)
    per_token = [1e6 * cost / tokens for cost in costs]
    return {
        "response_tokens": tokens,
        "microseconds_per_token": dict(zip(map(str, lengths), (round(cost, 2) for cost in per_token), strict=True)),
        "exponent": exponent(lengths, per_token),
    }


def vocabulary_section(repeats: int) -> dict:
    """The head alone: log-probabilities of 512 tokens and their gradient."""
    import torch

    from realrl.models.head import Head, token_stats

    tokens, sizes = 512, (4096, 16384, 65536)

    def make(size: int) -> Callable[[], None]:
        hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
        weight = torch.randn(size, HIDDEN, requires_grad=True)
        ids = torch.randint(0, size, (tokens,))

        def run() -> None:
            hidden.grad = weight.grad = None
            token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)[0].sum().backward()

        return run

    costs = medians([make(size) for size in sizes], repeats)
    return {
        "tokens": tokens,
        "seconds": dict(zip(map(str, sizes), (round(cost, 4) for cost in costs), strict=True)),
        "exponent": exponent(sizes, costs),
    }


class Laps:
    """CPU seconds spent in named calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, since: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - since

    def around(self, name: str, function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(name, started)

        return wrapper


def bookkeeping_section(repeats: int) -> dict:
    """A whole step, and in it sampling, the model's forward and backward, and the optimizer; the rest is bookkeeping."""
    import torch

    import realrl.models.logprobs as logprobs
    from realrl.sampling import SamplingParams
    from realrl.training import batching
    from realrl.types import Verdict

    vocabulary, length = 2048, 64
    model = make_model(vocabulary)
    model.train()
    sampler, step = make_sampler(model), gradient_step(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    prompts = make_batch(8, 8, length, vocabulary).prompts
    verdicts = [Verdict("correct" if row % 2 else "wrong") for row in range(64)]
    laps, started = Laps(), 0.0

    def enter(*_) -> None:
        nonlocal started
        started = time.process_time()

    def leave(*_) -> None:
        laps.add("forward" if torch.is_grad_enabled() else "sampling_in_model", started)

    hooks = [model.base_model.register_forward_pre_hook(enter), model.base_model.register_forward_hook(leave)]
    plain_stats, plain_backward = logprobs.token_stats, torch.Tensor.backward
    logprobs.token_stats = laps.around("forward", plain_stats)
    torch.Tensor.backward = laps.around("backward", plain_backward)
    params = SamplingParams(temperature=1.0, max_new_tokens=length)

    def run() -> None:
        rollouts = laps.around("sampling", sampler.sample)(
            [prompt.token_ids for prompt in prompts], group_size=8, params=params, seeds=list(range(64))
        )
        step.backward(batching.make_batch(prompts, rollouts, verdicts, torch.device("cpu")), None, None)
        update = laps.around("optimizer", lambda: (torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0), optimizer.step()))
        update()
        optimizer.zero_grad(set_to_none=True)

    try:
        run()
        laps.seconds.clear()
        whole = sum(seconds(run) for _ in range(repeats))
    finally:
        logprobs.token_stats, torch.Tensor.backward = plain_stats, plain_backward
        for hook in hooks:
            hook.remove()
    shares = {name: laps.seconds[name] / whole for name in ("sampling", "forward", "backward", "optimizer")}
    outside = shares["sampling"] - laps.seconds["sampling_in_model"] / whole
    return {
        "step_seconds": round(whole / repeats, 4),
        "shares": {name: round(value, 4) for name, value in shares.items()},
        "bookkeeping_share": round(1 - sum(shares.values()), 4),
        "head_and_draws_share_in_sampling": round(outside / shares["sampling"], 4),
    }


MEMORY_TOKENS, MEMORY_HIDDEN, MEMORY_VOCABULARIES = 4096, 64, (16384, 65536, 151936)


def added_mib(vocabulary: int) -> float:
    """Peak MiB that log-probabilities and their gradient add, without the weight's gradient; for a process of its own."""
    import torch

    from realrl.models.head import Head, token_stats

    hidden = torch.randn(MEMORY_TOKENS, MEMORY_HIDDEN, requires_grad=True)
    weight = torch.randn(vocabulary, MEMORY_HIDDEN, requires_grad=True)
    ids = torch.randint(0, vocabulary, (MEMORY_TOKENS,))
    forget_peak("cpu")
    before = peak_bytes("cpu")
    token_stats(Head(weight, None, None, 1.0), hidden, ids, 1.0)[0].sum().backward()
    return (peak_bytes("cpu") - before - weight.numel() * 4) / 2**20


def memory_section(repeats: int) -> dict:
    """Peak memory of the head's work; logits of all tokens in float32 for comparison."""
    peaks = []
    for size in MEMORY_VOCABULARIES:
        runs = [
            float(subprocess.run([sys.executable, __file__, "--added-mib", str(size)], capture_output=True, check=True).stdout)
            for _ in range(repeats)
        ]
        peaks.append(statistics.median(runs))
    return {
        "tokens": MEMORY_TOKENS,
        "mib": dict(zip(map(str, MEMORY_VOCABULARIES), (round(peak, 1) for peak in peaks), strict=True)),
        "mib_of_all_logits": {str(size): round(MEMORY_TOKENS * size * 4 / 2**20) for size in MEMORY_VOCABULARIES},
        "exponent": exponent(MEMORY_VOCABULARIES, peaks),
    }


SECTIONS = {
    "share": share_section,
    "groups": groups_section,
    "length": length_section,
    "vocabulary": vocabulary_section,
    "bookkeeping": bookkeeping_section,
    "memory": memory_section,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--added-mib", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.added_mib:
        print(added_mib(arguments.added_mib))
        return
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # as `realrl train` does
    report: dict[str, object] = {
        "cpu": cpu_model(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        **versions(["torch", "transformers"]),
    }
    for name in arguments.sections.split(","):
        report[name] = SECTIONS[name](arguments.repeats)
        print(f"{name}: done", file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
