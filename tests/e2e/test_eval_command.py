"""`realrl eval` as a user runs it: killed and resumed, graded again, compared, and through servers on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
import torch
from patience import PATIENCE_S, wait_until
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
RECIPE = """
[model]
path = "unused"
[data]
train = "unused"
[reward]
type = "exact_integer"
[sampling]
temperature = 1.0
max_new_tokens = 40
[eval]
samples = 4
"""


def realrl(*arguments, check=True, **environment):
    result = forked.realrl("eval", *arguments, **({"OMP_NUM_THREADS": "1"} | environment))
    assert not check or result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def files(tmp_path):
    """A recipe, two small benchmarks whose answers a random model may hit, and the arguments that name them."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for name, first in (("sums", 1), ("more", 5)):
        rows = [{"id": f"{name}{i}", "problem": f"{first + i}+{i}=", "answer": str(i)} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["-b", f"{tmp_path / 'sums.jsonl'},{tmp_path / 'more.jsonl'}", "--recipe", tmp_path / "recipe.toml"]


def generations(folder):
    lines = [line for path in (folder / "generations").iterdir() for line in path.read_text().splitlines()]
    return {(row["id"], row["sample"]): row["response"] for row in map(json.loads, lines)}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_killed_and_started_again_it_gives_the_same_result(tiny_folder, files, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [tiny_folder, *files, "--batch-rows", "4"]
    realrl(*arguments, "-o", whole)
    command = [sys.executable, "-m", "realrl", "eval", *map(str, arguments), "-o", str(killed)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stored = killed / "generations"
    while not any(path.stat().st_size for path in stored.glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (killed / "results.json").exists()
    refused = realrl(killed, "--regrade", check=False)
    assert refused.returncode == 1 and "generations of" in refused.stderr and "missing" in refused.stderr
    before = generations(killed)
    again = realrl(*arguments, "-o", killed)
    assert 0 < len(before) < 64 and "responses are stored; generating the others" in again.stderr
    assert generations(killed) == generations(whole) and len(generations(whole)) == 64
    assert results(killed) == results(whole)


def test_more_samples_build_on_those_stored_and_other_settings_are_refused(tiny_folder, files, tmp_path):
    folder, fresh = tmp_path / "out", tmp_path / "fresh"
    realrl(tiny_folder, *files, "--samples", "2", "-o", folder)
    assert list(results(folder)["results"].values())[0]["samples_each"] == 2
    out = realrl(tiny_folder, *files, "--samples", "3", "-o", folder)
    assert "16 of 24 responses are stored" in out.stderr
    realrl(tiny_folder, *files, "--samples", "3", "-o", fresh)
    assert generations(folder) == generations(fresh)
    refused = realrl(tiny_folder, *files, "--seed", "1", "-o", folder, check=False)
    assert refused.returncode == 1 and "seed was 0 and is now 1" in refused.stderr
    problem = tmp_path / "sums.jsonl"
    problem.write_text(problem.read_text().replace("1+0=", "1+9="))
    refused = realrl(tiny_folder, *files, "--samples", "3", "-o", folder, check=False)
    assert refused.returncode == 1 and "sums0 for another prompt" in refused.stderr


def test_regrading_needs_no_model_and_compare_pairs_the_problems(tiny_folder, files, tmp_path):
    model, a, b = tmp_path / "model", tmp_path / "a", tmp_path / "b"
    shutil.copytree(tiny_folder, model)
    realrl(model, *files, "-o", a)
    realrl(model, *files, "--seed", "1", "-o", b)
    shutil.rmtree(model)
    first = results(a)
    (a / "results.json").unlink()
    (a / "samples" / "_leftover").mkdir()
    realrl(a, "--regrade", "--recipe", tmp_path / "recipe.toml")
    assert results(a) == first
    name = next(iter(first["results"]))
    means = {}
    for folder in (a, b):
        rows = pq.read_table(next((folder / "samples").glob("*more*.parquet"))).to_pylist()
        assert len(rows) == 32 and {"response", "extracted", "parser_error", "answer_missed", "truncated"} <= rows[0].keys()
        means[folder] = sum(row["status"] == "correct" for row in rows) / 32
    compared = realrl("compare", a, b, "-o", tmp_path / "compared.json")
    record = next(r for r in json.loads((tmp_path / "compared.json").read_text()) if "more" in r["benchmark"])
    assert record["difference"] == pytest.approx(means[b] - means[a])
    assert record["interval"][0] <= record["difference"] <= record["interval"][1] and 0 < record["p_value"] <= 1
    assert "b − a" in compared.stdout and "Avg." in compared.stdout and "sums" in name
    nothing = realrl("compare", a, tmp_path, check=False)
    assert nothing.returncode == 1 and "no graded samples" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "math50"], "did you mean math500"),
        ([], "no benchmark given"),
        (["-b", "column_addition", "--temperature", "0"], "--samples 1"),
        (["-b", "column_addition", "--engine", "sglang"], "known: auto, hf, vllm"),
        (["-b", "column_addition", "--endpoint", "http://127.0.0.1:9/v1", "--retries", "0"], "cannot be reached"),
    ],
)
def test_bad_requests_are_said_in_one_line(tiny_folder, tmp_path, arguments, message):
    result = realrl(tiny_folder, *arguments, "--problems", "2", "-o", tmp_path / "out", check=False)
    assert result.returncode == 1 and message in result.stderr


class Stub(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that fails the first time it is asked anything; what it saw is on the server object."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        question = body["messages"][-1]["content"]
        key = (question, body["seed"])
        self.server.asked[key] = self.server.asked.get(key, 0) + 1
        self.server.busy = max(self.server.busy, threading.active_count())
        if "9+4=" in question and self.server.refuse:
            return self.answer(400, {"error": {"message": "maximum context length is 16 tokens"}})
        if self.server.asked[key] == 1:
            return self.answer(503 if len(question) % 2 else 429, {"error": {"message": "busy"}})
        message = {"role": "assistant", "content": "it is \\boxed{3}", "reasoning_content": "hm \ud800"}
        if "2+1=" in question:
            message = {"role": "assistant", "content": "", "reasoning_content": "still thinking of 1"}
        choice = {"index": 0, "finish_reason": "stop" if message["content"] else "length", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        return self.answer(200, reply)

    def answer(self, status, document):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.seen, server.asked, server.busy, server.refuse = [], {}, 0, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def test_an_endpoint_is_asked_until_it_answers_with_the_key_of_the_environment(stub, files, tmp_path):
    url = f"http://127.0.0.1:{stub.server_address[1]}/v1"
    realrl("served", *files, "--endpoint", url, "-o", tmp_path / "out", OPENAI_API_KEY="secret")
    path, authorization, body = stub.seen[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer secret" and body["model"] == "served"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.0, 1.0, 40)
    assert len(stub.asked) == 64 and set(stub.asked.values()) == {2}  # each with a seed of its own, each tried again once
    report = results(tmp_path / "out")
    # One of eight problems has the answer 3; the reasoning stands before the answer, never in its place.
    assert [r["accuracy"] for r in report["results"].values()] == [1 / 8, 1 / 8]
    sums = next(r for name, r in report["results"].items() if "sums" in name)
    assert (sums["truncated_share"], sums["no_answer_share"], sums["answer_missed_share"], sums["mean_length"]) == (
        1 / 8,
        1 / 8,
        1 / 8,
        7.0,
    )
    responses = generations(tmp_path / "out")
    assert responses["sums0", 0] == "<think>\nhm ?\n</think>\nit is \\boxed{3}"
    assert responses["sums1", 0] == "<think>\nstill thinking of 1"
    assert not any("secret" in path.read_text(errors="ignore") for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_what_a_server_refuses_ends_the_run_and_loses_nothing(stub, files, tmp_path):
    stub.refuse = True
    arguments = ["served", *files, "--endpoint", f"http://127.0.0.1:{stub.server_address[1]}/v1", "-o", tmp_path / "out"]
    refused = realrl(*arguments, "--concurrency", "2", check=False)
    assert refused.returncode == 1 and "400" in refused.stderr and "maximum context length" in refused.stderr
    stored = len(generations(tmp_path / "out"))
    assert 32 <= stored < 64
    stub.refuse = False
    stub.asked.clear()
    realrl(*arguments)
    assert len(generations(tmp_path / "out")) == 64 and len(stub.asked) == 64 - stored


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url):
    try:
        with urllib.request.urlopen(url) as reply:
            return reply.status == 200
    except OSError:
        return False


def test_a_real_server_and_transformers_give_the_same_greedy_responses(tiny_folder, files, tmp_path):
    """`transformers serve` on loopback beside the same model in process."""
    model = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(model)
    # A Llama: for Qwen2 the server parses responses by a template of its own, made for the real tokenizer's special tokens.
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    port = free_port()
    program = Path(sys.executable).parent / "transformers"
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health") or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        greedy = [model, *files, "--temperature", "0", "--samples", "1"]
        realrl(*greedy, "--endpoint", f"http://127.0.0.1:{port}/v1", "-o", tmp_path / "served")
        realrl(*greedy, "-o", tmp_path / "own")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE_S)
    served, own = generations(tmp_path / "served"), generations(tmp_path / "own")
    assert len(own) == 16 and len(set(own.values())) > 4
    assert served == own
    assert [r["accuracy"] for r in results(tmp_path / "served")["results"].values()] == [
        r["accuracy"] for r in results(tmp_path / "own")["results"].values()
    ]
