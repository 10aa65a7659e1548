"""Verifications a second on MATH-500's golds, ours beside plain math-verify, alternating in one run; prints JSON.

Each gold is held against itself, against another spelling of itself, and against the next problem's gold.
REALRL_DATA names the folder of the sets. With `--crowd N` instead: N such answers, one in twenty replaced by a hostile one
(a bomb, deep nesting, what may hang), once; their throughput, the growth of this process and the largest worker's memory, and
how many of the others got another verdict than alone.
"""

import argparse
import json
import platform
import random
import resource
import statistics
import time
from pathlib import Path

from math_verify import parse, verify

from realrl.config import RewardSection
from realrl.data import load_problems
from realrl.rewards import build_grader

REPEATS = 5
HOSTILE = [
    "\\boxed{" + "{" * 10_000 + "}" * 10_001,
    "\\boxed{" * 20_000,
    "\\boxed{" + "a" * 1_000_000 + "}",
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{(10^9)!}",
    r"\boxed{\sum_{k=1}^{10^{9}} k!}",
    r"\boxed{\sum_{k=1}^{999} k^{999}}",
    r"\boxed{\int_0^1 x^{x^{x}} dx}",
    r"\boxed{" + "-" * 1900 + "1}",
    r"\boxed{" + r"\frac" * 380 + "}",
    "\x00\ud800 \\boxed{\ud800}",
]


def spellings(answer: str, other: str) -> list[str]:
    return [answer, answer.replace("\\frac", "\\dfrac").replace(",", ", "), other]


def plain(response: str, gold: str) -> bool:
    return verify(parse(f"${gold}$", parsing_timeout=None), parse(response, parsing_timeout=None), timeout_seconds=None)


def crowd(count: int, responses: list[str], answers: list[str]) -> dict:
    """The figures of `--crowd`."""
    rng, grader = random.Random(0), build_grader(RewardSection())
    alone = [verdict.status for verdict in grader.score(responses, answers)]
    places = [n % len(responses) for n in range(count)]
    hostile = [rng.random() < 0.05 for _ in range(count)]
    texts = [rng.choice(HOSTILE) if bad else responses[place] for bad, place in zip(hostile, places, strict=True)]
    workers = [0]

    def progress(done: int) -> None:
        for status in Path("/proc").glob("[0-9]*/status") if done % 50 == 0 else ():
            if "realrl.verifier.pool" in status.with_name("cmdline").read_text():
                workers[0] = max(workers[0], int(status.read_text().partition("VmHWM:")[2].split()[0]))

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    verdicts = grader.score(texts, [answers[place] for place in places], progress)
    seconds = time.perf_counter() - start
    grader.close()
    found = list(zip(verdicts, hostile, places, strict=True))
    return {
        "answers": count,
        "hostile": sum(hostile),
        "per_second": round(count / seconds),
        "hostile_taken_for_right": sum(bad and verdict.status == "correct" for verdict, bad, _ in found),
        "hostile_grader_errors": sum(bad and verdict.status == "grader_error" for verdict, bad, _ in found),
        "others_with_another_verdict": sum(not bad and verdict.status != alone[place] for verdict, bad, place in found),
        "parent_grew_mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "largest_worker_mib": round(workers[0] / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crowd", type=int, metavar="N")
    arguments = parser.parse_args()
    golds = [problem.answer for problem in load_problems("math500").problems]
    pairs = [(text, a) for a, b in zip(golds, [*golds[1:], golds[0]], strict=True) for text in spellings(a, b)]
    responses, answers = [f"So it is \\boxed{{{text}}}." for text, _ in pairs], [gold for _, gold in pairs]
    if arguments.crowd:
        print(json.dumps(crowd(arguments.crowd, responses, answers)))
        return
    start = time.perf_counter()
    grader = build_grader(RewardSection())
    grader.score([r"\boxed{\sum_{k=1}^{3} k}"] * 2, ["6", "7"])
    start_up = time.perf_counter() - start
    ours, theirs = [], []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        # Another text each time, so that no repeat profits from what the last one parsed.
        verdicts = grader.score([text.replace("So", f"So {repeat}") for text in responses], answers)
        ours.append(len(pairs) / (time.perf_counter() - start))
        start = time.perf_counter()
        plain_right = sum(plain(response, answer) for response, answer in zip(responses, answers, strict=True))
        theirs.append(len(pairs) / (time.perf_counter() - start))
    grader.close()
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "verifications": len(pairs),
                "ours_per_second": round(statistics.median(ours)),
                "ours_first_repeat_per_second": round(ours[0]),
                "math_verify_per_second": round(statistics.median(theirs)),
                "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
                "ours_right": sum(verdict.status == "correct" for verdict in verdicts),
                "math_verify_right": plain_right,
                "pool_start_up_s": round(start_up, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
