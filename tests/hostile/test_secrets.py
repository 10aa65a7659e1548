"""Keys come from the environment and stay there: nothing that a command writes or prints holds one."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import forked
import pytest

SECRETS = {
    "OPENAI_API_KEY": "sk-canary-openai-5a1f",
    "HF_TOKEN": "hf_canary_hub_77c2",
    "WANDB_API_KEY": "canary-wandb-93bd",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0e4c",
}
PASSWORD = "canary-password-61d0"
RECIPE = """
run = { dir = "run" }
model = { path = "MODEL" }
data = { train = "column_addition", eval = ["column_addition"] }
sampling = { group_size = 2, max_new_tokens = 4 }
train = { steps = 1, prompts_per_step = 2, mini_batch_prompts = 2 }
eval = { problems = 2 }
log = { figure = false }
"""


def realrl(*words, cwd):
    return forked.realrl(*words, cwd=cwd, WANDB_MODE="offline", **SECRETS)


def assert_no_secret(folder, *texts):
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"}
    assert files
    for secret in (*SECRETS.values(), PASSWORD):
        assert not [name for name, data in files.items() if secret.encode() in data]
        assert not any(secret in text for text in texts)


@pytest.fixture
def server():
    """An endpoint that refuses every key and says which one it was."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self):
            body = f'{{"error": {{"message": "wrong key {self.headers["Authorization"]}"}}}}'.encode()
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_run_its_evaluation_and_its_report_hold_no_key(tmp_path, tiny_folder):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("MODEL", str(tiny_folder)))
    outputs = []
    for words in (
        ["train", "recipe.toml"],
        [
            "eval",
            "run/checkpoints/step_1",
            "--recipe",
            "run/config.toml",
            "-b",
            "column_addition",
            "--problems",
            "2",
            "-o",
            "eval",
        ],
        ["report", "run", "eval", "-o", "report.html"],
    ):
        done = realrl(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outputs += [done.stdout, done.stderr]
    assert_no_secret(tmp_path, *outputs)


def test_a_refused_key_and_a_password_in_a_url_are_not_said(tmp_path, server):
    pytest.importorskip("openai")
    (tmp_path / "set.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    common = ["-b", "set.jsonl", "--samples", "1", "--retries", "0", "-o", "eval"]
    refused = realrl("eval", "m", "--endpoint", f"http://{server}/v1", *common, cwd=tmp_path)
    assert refused.returncode == 1 and "answered 401" in refused.stderr and "OPENAI_API_KEY" in refused.stderr
    url = realrl("eval", "m", "--endpoint", f"http://user:{PASSWORD}@{server}/v1", *common, cwd=tmp_path)
    assert url.returncode == 1 and "name or password" in url.stderr
    data = realrl("data", "show", f"https://user:{PASSWORD}@example.invalid/x.jsonl", cwd=tmp_path)
    assert data.returncode == 1 and "https://…@example.invalid/x.jsonl" in data.stderr
    texts = [text for done in (refused, url, data) for text in (done.stdout, done.stderr)]
    assert_no_secret(tmp_path, *texts)
