"""Verifications a second on MATH-500's golds, ours beside plain math-verify, alternating in one run; prints JSON.

Each gold is held against itself, against another spelling of itself, and against the next problem's gold. Needs ../shared/data.
"""

import json
import platform
import statistics
import time

from math_verify import parse, verify

from realrl.config import RewardSection
from realrl.data import load_problems
from realrl.rewards import build_verifier

REPEATS = 5


def spellings(answer: str, other: str) -> list[str]:
    return [answer, answer.replace("\\frac", "\\dfrac").replace(",", ", "), other]


def plain(response: str, gold: str) -> bool:
    return verify(parse(f"${gold}$", parsing_timeout=None), parse(response, parsing_timeout=None), timeout_seconds=None)


def main() -> None:
    golds = [problem.answer for problem in load_problems("math500").problems]
    pairs = [(text, a) for a, b in zip(golds, [*golds[1:], golds[0]], strict=True) for text in spellings(a, b)]
    responses, answers = [f"So it is \\boxed{{{text}}}." for text, _ in pairs], [gold for _, gold in pairs]
    start = time.perf_counter()
    grader = build_verifier(RewardSection())
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
