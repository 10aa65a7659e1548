"""Verifiers for the tests of the pool. Its workers import this module, so it stays small: no torch, no pytest."""

import asyncio
import ctypes
import os
import subprocess
import threading

from realrl.types import Verdict


def double(response: str, answer: str) -> bool:
    return response == 2 * answer


async def share(response: str, answer: str) -> float:
    await asyncio.sleep(0)
    return response.count(answer) / len(response)


def hang_or_die(response: str, gold: str):
    """Right where the two are equal; the process in the reason. Some responses do what hostile ones may."""
    match response:
        case "hang":
            threading.Event().wait()
        case "die":
            os._exit(1)
        case "exit":
            raise SystemExit(0)
        case "crash":
            ctypes.string_at(0)
        case "raise":
            raise ValueError("no")
        case "hoard":
            return Verdict("correct", str(len(bytearray(2**31))))
        case "nest":
            return Verdict("correct", str(_nested(100_000)))
        case "talk":
            return Verdict("correct", "x" * 2**24)
        case "object":
            return Verdict("correct", object())  # type: ignore
        case "spawn":
            child = subprocess.Popen(["sleep", "600"])
            with open(gold, "w") as file:
                file.write(str(child.pid))
            threading.Event().wait()
    return Verdict("correct" if response == gold else "wrong", response, str(os.getpid()))


def _nested(depth: int) -> int:
    return 1 + _nested(depth - 1) if depth else 0


def none(response: str, answer: str) -> None: ...


def text(response: str, answer: str) -> str:
    return "True"


def two(response: str, answer: str) -> float:
    return 2.0


def alone(response: str) -> bool:
    return True


def lost(response: str, answer: str) -> bool:
    raise KeyError("no key")


def half(response: str, answer: str) -> float:
    return 0.5


def _is_tried(response: str, answer: str) -> bool:
    """Whether it is what a run tries a verifier on, and no model writes."""
    return response in (f"\\boxed{{{answer}}}", "I do not know.")


def lost_later(response: str, answer: str) -> bool:
    return _is_tried(response, answer) or lost(response, answer)


def half_later(response: str, answer: str) -> float:
    return 1.0 if _is_tried(response, answer) else 0.5


def lost_at_times(response: str, answer: str) -> bool:
    return len(response) % 2 == 0 or lost(response, answer)
