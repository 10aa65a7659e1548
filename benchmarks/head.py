"""Log-probabilities and their gradient, head in chunks against logits of all tokens: time and peak memory, in one run.

    python benchmarks/head.py [--repeats 5] [--threads 1]

Each side runs in processes of its own, in turns, so that peak memory is its alone. Prints JSON; ratios are plain / chunked.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

# (tokens, hidden size, vocabulary): SmolLM2-135M's head, and DeepSeek-R1-Distill-Qwen-1.5B's.
SHAPES = {"smollm2-135m": (2048, 576, 49152), "qwen2-1.5b": (512, 1536, 151936)}


def work(side: str, shape: str, threads: int) -> dict[str, float]:
    """One forward and backward; seconds of the second of two, and the peak memory added by them."""
    import torch

    from realrl.models.head import Head, token_stats

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokens, width, vocabulary = SHAPES[shape]
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.empty(vocabulary, width).normal_(std=0.02).requires_grad_()
    ids = torch.randint(0, vocabulary, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = 0.0
    for _ in range(2):
        hidden.grad = weight.grad = None
        started = time.perf_counter()
        if side == "chunked":
            logprobs, _, _ = token_stats(Head(weight, None, None, 1.0), hidden, ids, 0.6)
        else:
            scaled = torch.nn.functional.linear(hidden, weight).float() / 0.6
            logprobs = scaled.gather(1, ids[:, None])[:, 0] - scaled.logsumexp(dim=-1)
            with torch.no_grad():
                scaled.logsumexp(dim=-1) - (scaled.softmax(dim=-1) * scaled).sum(dim=-1)
        logprobs.sum().backward()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(work(*arguments.one, arguments.threads)))
        return
    report: dict[str, object] = {"machine": platform.machine(), "threads": arguments.threads, "repeats": arguments.repeats}
    for shape, (tokens, width, vocabulary) in SHAPES.items():
        runs: dict[str, list[dict[str, float]]] = {"chunked": [], "plain": []}
        for _ in range(arguments.repeats):
            for side, done in runs.items():
                command = [sys.executable, __file__, "--one", side, shape, "--threads", str(arguments.threads)]
                done.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        median = {
            side: {key: statistics.median(run[key] for run in done) for key in ("seconds", "mib")}
            for side, done in runs.items()
        }
        report[shape] = {
            "tokens": tokens,
            "hidden": width,
            "vocabulary": vocabulary,
            **{side: {key: round(value, 3) for key, value in figures.items()} for side, figures in median.items()},
            "time_ratio": round(median["plain"]["seconds"] / median["chunked"]["seconds"], 2),
            "memory_ratio": round(median["plain"]["mib"] / median["chunked"]["mib"], 2),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
