"""An evaluation through a server that fails in every way: each sample is there in the end, once; an error says how to go on."""

import json
import os
import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from realrl.errors import SamplingError
from realrl.eval.run import EvalRequest, run_eval

CAMPAIGN = bool(os.environ.get("REALRL_CAMPAIGN"))
PROBLEMS, SAMPLES = (125, 16) if CAMPAIGN else (12, 8)
# What a reply may be instead of a completion, and that no client's own rules send again.
GARBAGE = [
    "<html>gateway</html>",
    '{"choices": [{"ind',
    "",
    "null",
    "[]",
    '{"error": {"message": "overloaded"}}',
    '{"choices": null}',
    '{"choices": []}',
    '{"choices": {"0": 1}}',
    '{"choices": [{"index": 0, "finish_reason": "stop"}]}',
    '{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": 7}}]}',
    '{"choices": [{"index": 0, "message": {}}]}',
]
# A silent one costs its whole deadline.
FAULTS = ["drop", "short", "slow", 429, 500, 503, *GARBAGE, *(["silent"] if CAMPAIGN else [])]


class Faulty(BaseHTTPRequestHandler):
    """Fails as `server.fate(key, attempt)` says; what it gave, asked how often and when, is on the server object."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = body["messages"][-1]["content"].split("\n")[0], body["seed"]
        server = self.server
        with server.lock:
            server.asked[key] += 1
            attempt = server.asked[key]
            if key in server.not_before:
                server.early += time.monotonic() < server.not_before.pop(key)
        fate = server.fate(key, attempt)
        if fate == "drop":
            return None
        if fate == "silent":
            return server.healed.wait()
        if fate == "trickle":
            self.reply(200, "", length=10**6)
            while not server.healed.wait(0.2):
                self.wfile.write(b" ")
            return None
        if fate == "slow":
            time.sleep(0.3)
        if fate == 429:
            with server.lock:
                server.not_before[key] = time.monotonic() + 1
            return self.reply(429, '{"error": {"message": "busy"}}', retry_after="1")
        if fate in (500, 503):
            return self.reply(fate, '{"error": {"message": "\\u001b[31mbusy"}}')
        if isinstance(fate, str) and fate in GARBAGE:
            return self.reply(200, fate, kind=random.choice(["application/json", "text/html"]))
        # An empty text is an answer, too, and some servers do not count tokens.
        text = "" if key[1] % 7 == 0 else f"{key[0]} has the answer of {key[1]}: \\boxed{{1}}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice, choice]}
        if key[1] % 2:
            reply["usage"] = {"completion_tokens": 3}
        text = json.dumps(reply)
        self.reply(200, text if fate != "short" else text[:-20], length=len(text))
        return None

    def reply(self, status, text, *, kind="application/json", length=None, retry_after=None):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(data)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Clients go away here."""


@pytest.fixture
def server():
    one = Server(("127.0.0.1", 0), Faulty)
    one.asked, one.not_before, one.early, one.lock, one.healed = Counter(), {}, 0, threading.Lock(), threading.Event()
    thread = threading.Thread(target=one.serve_forever)
    thread.start()
    yield one
    one.healed.set()
    one.shutdown()
    thread.join()
    one.server_close()


@pytest.fixture
def evaluate(server, tmp_path):
    rows = [{"id": f"p{n}", "problem": f"question {n}", "answer": "1"} for n in range(PROBLEMS)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(**options):
        settings = {"samples": SAMPLES, "reward": "exact_integer", "concurrency": 16, "retries": 4, "timeout": 60.0, **options}
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        output = str(tmp_path / "out")
        run_eval(EvalRequest("served", (str(tmp_path / "set.jsonl"),), endpoint=url, output=output, **settings))

    return run


def stored(tmp_path):
    """The lines of the store, each (problem, sample) once, each with a response to its own problem."""
    lines = [line for path in (tmp_path / "out" / "generations").iterdir() for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert len({(row["id"], row["sample"]) for row in rows}) == len(rows)
    texts = [row["response"] for row in rows if row["response"]]
    assert len(set(texts)) == len(texts)
    assert all(row["response"] == "" or row["response"].startswith(f"question {row['id'][1:]} has") for row in rows)
    return rows


def test_every_sample_is_there_in_the_end_once(server, evaluate, tmp_path):
    """Four of ten requests fail, by a seed; where one fails for good, the same command goes on."""

    def fate(key, attempt):
        rng = random.Random(f"{key} {attempt}")
        return rng.choice(FAULTS) if rng.random() < 0.4 else None

    server.fate = fate
    commands = before = 0
    while commands < 20:
        commands += 1
        try:
            evaluate(timeout=10.0 if CAMPAIGN else 60.0)
            break
        except SamplingError as error:
            rows = stored(tmp_path)
            assert f"{len(rows)} of {PROBLEMS * SAMPLES} responses of" in str(error) and "the same command" in str(error)
            assert before <= len(rows) and "\x1b" not in str(error)
            before = len(rows)
    rows = stored(tmp_path)
    assert len(rows) == PROBLEMS * SAMPLES == len(server.asked)
    assert server.early == 0  # a Retry-After is waited for
    assert {row["tokens"] for row in rows} == {3, None}
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    accuracy = next(iter(report["results"].values()))["accuracy"]
    assert accuracy == pytest.approx(sum("boxed{1}" in row["response"] for row in rows) / len(rows))
    print(f"{commands} commands, {sum(server.asked.values())} requests for {len(rows)} samples")


@pytest.mark.parametrize("fate", ["silent", "trickle"])
def test_a_server_that_stops_answering_ends_the_evaluation_which_then_goes_on(server, evaluate, tmp_path, fate):
    good = set()

    def fates(key, attempt):
        with server.lock:
            if len(good) < 20:
                good.add(key)
        return None if key in good or server.healed.is_set() else fate

    server.fate = fates
    with pytest.raises(SamplingError, match=r"answered none of 16 requests for 6 s; .*--timeout; \d+ of") as error:
        evaluate(timeout=3.0)
    before = len(stored(tmp_path))
    assert f"{before} of {PROBLEMS * SAMPLES} responses" in str(error.value) and before <= 20
    server.healed.set()
    asked = Counter(server.asked)
    evaluate()
    assert len(stored(tmp_path)) == PROBLEMS * SAMPLES
    assert sum(server.asked[key] == asked[key] for key in asked) >= before  # what was stored is not asked for again


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        (GARBAGE[0], r"gave no completion in 2 attempts, the last reply is '<html>gateway</html>'; is it the URL"),
        (GARBAGE[5], r"gave no completion in 2 attempts, the last reply is .*overloaded"),
        (503, r"answered 503: .*busy"),
        ("drop", r"cannot be reached: Connection error"),
    ],
)
def test_a_server_that_only_fails_is_given_up_after_the_last_try(server, evaluate, fate, message):
    server.fate = lambda key, attempt: fate
    with pytest.raises(SamplingError, match=message) as error:
        evaluate(retries=1, concurrency=2)
    assert re.search(rf"; 0 of {PROBLEMS * SAMPLES} responses of", str(error.value)) and "\x1b" not in str(error.value)
    assert max(server.asked.values()) == 2
