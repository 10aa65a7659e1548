"""Verifiers of a user, each with a fault of its own; they run in the pool's workers."""

import ctypes
import os
import sys
import threading
import time

time.sleep(0 if os.environ.get("VERIFIER_IMPORT_S") is None else float(os.environ["VERIFIER_IMPORT_S"]))


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def faulty(response: str, answer: str):
    match response:
        case "hang":
            threading.Event().wait()
        case "exit":
            sys.exit(3)
        case "os._exit":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "hoard":
            hoard = []
            while True:
                hoard.append(bytearray(1 << 24))
        case "recurse":
            return faulty(response, answer)
        case "interrupt":
            raise KeyboardInterrupt
        case "raise":
            raise ValueError("\x1b[2J" * 1000)
        case "odd":
            raise Odd
        case "print":
            print("\x1b[2J" * 100_000)
            sys.stderr.write("x" * 1_000_000)
            os.write(1, b"x" * 1_000_000)
            return input() == answer
        case "nan":
            return float("nan")
        case "inf":
            return float("inf")
        case "negative":
            return -1
        case "two":
            return 2
        case "huge":
            return 10**400
        case "none":
            return None
        case "object":
            return object()
        case "text":
            return "yes"
        case "lambda":
            return lambda: None
    return response == answer


FAULTS = "hang exit os._exit segfault hoard recurse interrupt raise odd print nan inf negative two huge none object text lambda"
