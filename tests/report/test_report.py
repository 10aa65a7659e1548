"""The report of runs: what is computed for it, that it holds whatever a run folder holds, and that model text stays text."""

import base64
import hashlib
import http.client
import json
import math
import re
import signal
import subprocess
import sys
import threading
from dataclasses import astuple
from pathlib import Path

import forked
import pytest
from made_runs import HOSTILE, make_run, rollout
from patience import PATIENCE_S
from tokenizers import Tokenizer

from realrl.errors import ConfigError, DataError
from realrl.eval.benchmarks import PAPER_ROWS
from realrl.figures.statistics import mean_of
from realrl.figures.weights import figure_1_of
from realrl.models.adder import character_tokenizer
from realrl.report.page import render_page
from realrl.report.report import report_data, write_report
from realrl.report.watch import WatchServer
from realrl.rundir.environment import environment, record_environment
from realrl.system.hardware import Rates, Speed

ROOT = Path(__file__).parents[2]


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_interval_is_students():
    # 1, 2, 3: standard deviation 1, two degrees of freedom, whose 97.5 % quantile is 4.3027.
    mean, low, high = astuple(mean_of([1.0, 2.0, 3.0]))
    assert (mean, high - mean, mean - low) == pytest.approx((2.0, 4.3027 / 3**0.5, 4.3027 / 3**0.5), rel=1e-4)
    assert astuple(mean_of([0.25])) == (0.25, None, None)
    # 99 degrees of freedom: 1.9842.
    assert mean_of([0.0, 1.0] * 50).high == pytest.approx(0.5 + 1.9842 * (25 / 99) ** 0.5 / 10, rel=1e-5)


def test_seeds_are_one_series_and_recipes_are_several(tmp_path):
    runs = [make_run(tmp_path / f"a{seed}", seed=seed) for seed in (0, 1, 2)]
    runs.append(make_run(tmp_path / "b", objective={"type": "real", "tau": 0.1}))
    runs.append(make_run(tmp_path / "c", objective={"type": "grpo"}))
    data = report_data(runs)
    assert [series["label"] for series in data["series"]] == ["real, tau = 0.5", "real, tau = 0.1", "grpo"]
    assert [[run["seed"] for run in series["runs"]] for series in data["series"]] == [[0, 1, 2], [0], [0]]
    reward = data["series"][0]["curves"]["reward/mean"]
    assert reward["x"] == [1, 2, 3, 4, 5, 6] and reward["n"] == 3
    # Seeds differ by 0.02: standard deviation 0.02 at every step.
    assert reward["mean"] == pytest.approx([0.32 + 0.05 * step for step in range(1, 7)], rel=1e-4)
    assert reward["high"][0] - reward["mean"][0] == pytest.approx(4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert "low" not in data["series"][1]["curves"]["reward/mean"]
    assert {row["key"]: row["values"] for row in data["differences"]}["objective.tau"] == ["0.5", "0.1", None]


def test_one_runs_accuracy_has_the_interval_over_problems(tmp_path):
    data = report_data([make_run(tmp_path / "run")])
    curve = data["series"][0]["curves"]["eval/column_addition/sampled/accuracy"]
    assert curve["x"] == [1, 6]
    assert curve["high"] == pytest.approx([0.52 + 1.96 * 0.04, 0.62 + 1.96 * 0.04], rel=1e-4)
    (row,) = data["heldOut"]
    assert (row["before"], row["after"], row["steps"]) == (pytest.approx(0.52), pytest.approx(0.62), "6")


def test_runs_of_different_lengths_say_how_many_are_left(tmp_path):
    data = report_data([make_run(tmp_path / "a", steps=3), make_run(tmp_path / "b", seed=1, steps=3)])
    assert data["series"][0]["curves"]["reward/mean"]["n"] == 2
    long = make_run(tmp_path / "c", steps=5)
    (long / "config.toml").write_text((tmp_path / "a" / "config.toml").read_text())
    curve = report_data([tmp_path / "b", long])["series"][0]["curves"]["reward/mean"]
    assert curve["n"] == [2, 2, 2, 1, 1] and curve["high"][3:] == [None, None]


def test_a_long_curve_is_thinned_by_means(tmp_path):
    run = make_run(tmp_path / "run", steps=1000, rollouts=0, metrics=lambda step: {"loss": float(step)})
    curve = report_data([run])["series"][0]["curves"]["loss"]
    assert curve["per"] == 3 and curve["x"][:2] == [3, 6] and curve["mean"][:2] == [2.0, 5.0]
    assert curve["x"][-1] == 1000 and curve["mean"][-1] == 1000.0


def test_quantiles_are_of_rollouts_that_were_computed(tmp_path):
    def rows(step):
        right = [rollout(step, reward=1.0, score=float(score), weight=-1.0) for score in (1, 2, 3, 4, 5)]
        return [*right, rollout(step, reward=1.0, score=99.0, weight=0.0), rollout(step, reward=0.0, score=-7.0, weight=2.0)]

    bands = report_data([make_run(tmp_path / "run", steps=1, rows=rows)])["series"][0]["bands"]
    assert [q[0] for q in bands["score"]["right"]["quantiles"]] == pytest.approx([1.2, 2.0, 3.0, 4.0, 4.8])
    assert bands["score"]["wrong"]["quantiles"][2] == [-7.0]
    assert bands["weight"]["wrong"] == {"x": [1], "quantiles": [[2.0]] * 5}


def test_pictures_are_of_the_runs_own_objectives(tmp_path):
    real = make_run(tmp_path / "real", objective={"type": "real", "tau": 0.25, "kl": {"target": "old", "coef": 0.1}})
    (picture,) = report_data([real])["pictures"]
    assert picture["section"] == "distributions" and base64.b64decode(picture["svg"]).startswith(b"<?xml")
    figure_1_of({"real": {"type": "real", "tau": 0.25}}, tmp_path)
    assert base64.b64decode(picture["svg"]) == (tmp_path / "figure_1_runs.svg").read_bytes()
    # At s = 2, where the wrong response is far up: (1/τ)/(1 + C e^(−s/τ)) with C = 4.
    *_, last = (tmp_path / "figure_1_runs.csv").read_text().split()
    assert float(last.split(",")[4]) == pytest.approx(4 / (1 + 4 * math.exp(-8)), rel=1e-6)
    data = report_data([real, make_run(tmp_path / "grpo", objective={"type": "grpo"})])
    assert [picture["section"] for picture in data["pictures"]] == ["distributions", "evaluation"]
    config = real / "config.toml"
    config.write_text(config.read_text().replace('type = "real"', 'type = "unheard_of"'))
    assert report_data([real])["pictures"] == []


def test_a_damaged_run_still_has_a_report(tmp_path):
    run = make_run(tmp_path / "run", metrics=lambda step: {"kl": math.nan if step == 2 else 0.1, "loss": math.inf})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n[1]\n{"step": "six"}\n{"step": 7, "reward/mean": 0.')
    (run / "rollouts" / "step_000003.parquet").write_bytes(b"PAR1 torn")
    (run / "rollouts" / "step_000004.parquet").unlink()
    (run / "environment.json").write_text("{")
    data = data_of(render_page(report_data([run])))
    curves = data["series"][0]["curves"]
    assert curves["reward/mean"]["x"] == [1, 2, 3, 4, 5, 6]
    assert curves["kl"]["x"] == [1, 3, 4, 5, 6] and "loss" not in curves
    assert data["rollouts"][0]["steps"] == [1, 2, 5, 6]
    (left_out,) = (fact["values"] for fact in data["common"] if fact["name"] == "Left out")
    assert left_out == [f"line 9 and 2 more of {run / 'metrics.jsonl'}: no record of a step"]


def test_a_run_that_has_only_begun_or_saves_no_rollouts_has_a_report(tmp_path):
    run = make_run(tmp_path / "run", rollouts=0)
    assert report_data([run])["rollouts"] == []
    (run / "metrics.jsonl").unlink()
    data = report_data([run])
    assert data["series"][0]["runs"][0]["steps"] == 0 and data["charts"] == [] and data["heldOut"] == []


@pytest.mark.parametrize(
    ("name", "said"), [("empty", "no config.toml"), ("absent", "does not exist"), ("file", "no config.toml")]
)
def test_a_folder_that_is_no_run_is_named(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{name}.*{said}"):
        write_report([tmp_path / name], tmp_path / "report.html")


def test_alarms_are_shown_once_and_those_of_steps_that_a_resume_took_back_are_not(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [
        "step 2: ALARM: the gradient is exactly 0",
        "step 2: ALARM: the gradient is exactly 0",
        "step 9: ALARM: late",
        "odd",
    ]
    (run / "alarms.txt").write_text("\n".join(lines))
    assert report_data([run])["alarms"] == [{"run": "run", "step": 2, "text": "the gradient is exactly 0"}]


def test_evaluations_stand_beside_the_papers_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    results = {
        "model": "some/model",
        "results": {"aime24": {"accuracy": 0.25, "interval": [0.1, 0.4], "problems": 30, "samples_each": 16}},
        "average": {"accuracy": 0.25, "interval": [0.1, 0.4]},
    }
    for folder in (run / "eval" / "last", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
    data = report_data([run, tmp_path / "other"])
    assert [row["folder"] for row in data["benchmarks"]] == ["other", "last"]
    assert data["benchmarks"][0]["cells"] == {"aime24": results["results"]["aime24"]}
    assert data["paper"]["of"]["aime24"] == "AIME24" and len(data["paper"]["rows"]) == len(PAPER_ROWS)
    (tmp_path / "other" / "results.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"other/results.json is not what realrl eval writes"):
        report_data([tmp_path / "other"])


def test_model_text_is_data_and_nothing_else(tmp_path):
    texts = {
        name: f"{name} {HOSTILE}" for name in ("prompt", "response", "extracted", "answer", "reason", "problem_id", "verdict")
    }
    run = make_run(
        tmp_path / "run", steps=1, rows=lambda step: [rollout(step, **{k: v.replace("\ud800", "") for k, v in texts.items()})]
    )
    data = report_data([run])
    data["rollouts"][0]["rows"][0]["response"] = HOSTILE
    page = render_page(data)
    # Four scripts and the data; the same markup as without the run, whatever the text.
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 5
    assert "<img" not in page and "\u2028" not in page and "\x1b" not in page and "hacked = 'img'\">" not in page
    page.encode("utf-8")
    row = data_of(page)["rollouts"][0]
    assert row["rows"][0]["response"] == HOSTILE
    assert row["prompts"] == [texts["prompt"].replace("\ud800", "")]


@pytest.mark.parametrize("live", [False, True])
def test_the_policy_allows_exactly_the_pages_own_scripts_and_styles(tmp_path, live):
    page = render_page(None if live else report_data([make_run(tmp_path / "run")]), live=live)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        digests = [
            hashlib.sha256(body.encode()).digest() for body in re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        ]
        assert rules.pop(rule) == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests] and digests
    assert rules.pop("connect-src", None) == (["'self'"] if live else None)
    assert rules == {"default-src": ["'none'"], "base-uri": ["'none'"], "form-action": ["'none'"], "img-src": ["data:"]}
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)[\w/:.]""", re.sub("<script.*?</script>", "", page, flags=re.DOTALL))


def test_200_steps_of_64_long_rollouts_fit_into_5_mb(tmp_path):
    words = "so the sum of both is what we want, "
    run = make_run(
        tmp_path / "run",
        steps=200,
        rows=lambda step: [rollout(step, group // 8, response=f"{group} {words * 100}") for group in range(64)],
        metrics=lambda step: {f"metric/{index}": math.sin(step * index) for index in range(40)},
    )
    assert write_report([run], tmp_path / "report.html") == (tmp_path / "report.html").stat().st_size < 5e6
    (found,) = data_of((tmp_path / "report.html").read_text())["rollouts"]
    assert found["total"] == 200 * 64
    # About the same number of each step.
    counts = [sum(row["step"] == step for row in found["rows"]) for step in range(1, 201)]
    assert max(counts) - min(counts) <= 1 and sum(counts) > 400


def test_rollouts_that_the_grader_could_not_judge_come_first(tmp_path):
    def rows(step):
        return [
            rollout(step, index, response="x" * 5000, verdict="grader_error" if index == 37 else "wrong") for index in range(64)
        ]

    (found,) = report_data([make_run(tmp_path / "run", steps=200, rows=rows)])["rollouts"]
    assert sum(row["verdict"] == "grader_error" for row in found["rows"]) == 200


def test_a_second_grader_says_where_it_disagrees(tmp_path):
    def rows(step):
        made = [rollout(step, group) for group in range(4)]
        # Called right, though the gold is another number.
        return [*made, rollout(step, 9, reward=1.0, answer="777"), rollout(step, 5, response="x" * 7000 + "\\boxed{1}")]

    run = make_run(tmp_path / "run", steps=1, rows=rows)
    write_report([run], tmp_path / "report.html", "math-verify")
    (found,) = data_of((tmp_path / "report.html").read_text())["rollouts"]
    assert {row["group"]: row.get("disagree") for row in found["rows"]} == {
        0: False,
        1: False,
        2: False,
        3: False,
        9: True,
        5: None,
    }
    assert found["rows"][-1]["second"] == "math-verify: wrong"
    with pytest.raises(DataError, match="--compare 'nobody' is not a known grader"):
        write_report([run], tmp_path / "report.html", "nobody")


def test_tokens_have_their_text_and_ratio(tmp_path):
    tokenizer = character_tokenizer()
    ids = tokenizer("1+2=")["input_ids"]
    ratios = [0.0, 0.25, -0.5, None]
    run = make_run(tmp_path / "run", steps=1, rows=lambda step: [rollout(step, token_ids=ids, log_ratio=ratios)])
    folder = run / "checkpoints" / "step_1"
    tokenizer.save_pretrained(folder)
    (found,) = report_data([run])["rollouts"]
    assert found["rows"][0]["log_ratio"] == ratios
    assert [found["tokens"][str(token)] for token in found["rows"][0]["token_ids"]] == ["1", "+", "2", "="]
    assert isinstance(Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer)


def test_token_ratios_are_counted_by_interval_and_sign(tmp_path):
    right = rollout(1, 0, reward=1.0, token_ids=[5, 6, 7], log_ratio=[0.0, math.log(1.3), math.log(0.7)])
    wrong = rollout(1, 0, reward=0.0, token_ids=[5, 6], log_ratio=[math.log(3), math.log(0.6)])
    ratios = report_data([make_run(tmp_path / "run", steps=1, rows=lambda step: [right, wrong])])["series"][0]["ratios"]
    assert ratios["names"][3] == "0.95 to 1.05" and ratios["intervals"] == [[0, 1, 0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 1]]
    assert ratios["dropped"] == [[1, 2], [1, 2]]
    assert report_data([make_run(tmp_path / "other", steps=1)])["series"][0]["ratios"] is None


def test_the_environment_is_recorded_at_every_start(tmp_path):
    rates = Rates("cpu", 2, Speed(6e10, 5e10), None, "no bfloat16 units")
    for ranks in (1, 2):
        record_environment(tmp_path, ranks, rates)
    first, second = json.loads((tmp_path / "environment.json").read_text())
    assert (first["ranks"], second["ranks"]) == (1, 2) and first["started"] <= second["started"]
    assert first["rates"]["float32"] == {"forward": 6e10, "backward": 5e10} and first["rates"]["bfloat16"] is None
    assert first["python"] == ".".join(map(str, sys.version_info[:3])) and "torch" in first["packages"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    assert environment(1)["commit"] == (head or None)


def test_the_duration_leaves_out_the_time_between_a_stop_and_a_resume(tmp_path):
    run = make_run(tmp_path / "run")  # records at 1010, 1015, 1020 … 1060, 1065
    (run / "environment.json").write_text(json.dumps([{"started": 1000.0}, {"started": 1048.0}]))
    assert report_data([run])["series"][0]["runs"][0]["seconds"] == pytest.approx((1040 - 1000) + (1065 - 1048))


@pytest.fixture
def serve():
    servers = []

    def start(folder):
        server = WatchServer(folder)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, path, host=None, headers=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=PATIENCE_S)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_port}", **(headers or {})})
    answer = connection.getresponse()
    return answer, answer.read()


def test_watch_follows_a_run_from_before_it_exists(tmp_path, serve):
    server = serve(tmp_path / "run")
    assert server.server_address[0] == "127.0.0.1"
    answer, page = ask(server, "/")
    assert answer.status == 200 and b'data-mode="live"' in page
    answer, body = ask(server, "/data.json")
    assert json.loads(body)["series"] == []
    run = make_run(tmp_path / "run", steps=2)
    answer, body = ask(server, "/data.json")
    assert json.loads(body)["series"][0]["runs"][0]["steps"] == 2
    answer, body = ask(server, "/data.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert answer.status == 304 and not body
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "time": 1, "reward/mean": 0.5}\n')
    answer, body = ask(server, "/data.json")
    assert json.loads(body)["series"][0]["runs"][0]["steps"] == 3


def test_watch_answers_to_its_own_address_and_paths_only(tmp_path, serve):
    run = make_run(tmp_path / "run")
    server = serve(run)
    for host in (
        "evil.example",
        f"evil.example:{server.server_port}",
        "127.0.0.1",
        f"127.0.0.1.evil.example:{server.server_port}",
    ):
        answer, body = ask(server, "/data.json", host=host)
        assert answer.status == 421 and b"reward" not in body
    assert ask(server, "/data.json", host=f"localhost:{server.server_port}")[0].status == 200
    for path in ("/config.toml", "/metrics.jsonl", "/../config.toml", "/data.json?x=1", "/rollouts/step_000001.parquet"):
        assert ask(server, path)[0].status == 404
    headers = ask(server, "/")[0].headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Access-Control-Allow-Origin"] is None


def test_watch_refuses_what_it_cannot_serve(tmp_path, serve):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(DataError, match="other is not a run folder"):
        WatchServer(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"--port \d+ on 127.0.0.1 cannot be used"):
        WatchServer(tmp_path / "run", serve(tmp_path / "run").server_port)


def test_the_commands(tmp_path):
    run = make_run(tmp_path / "run")
    output = tmp_path / "new" / "report.html"
    done = forked.realrl("report", run, "-o", output)
    assert done.returncode == 0 and str(output) in done.stdout and "MB" in done.stdout
    assert data_of(output.read_text())["title"] == "run"
    failed = forked.realrl("report", tmp_path, "-o", output)
    assert failed.returncode == 1 and "no config.toml" in failed.stderr and "Traceback" not in failed.stderr
    # A shell without job control starts what it puts into the background with Ctrl-C ignored, tests included.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    command = [sys.executable, "-m", "realrl", "watch", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **heard) as watching:
        try:
            address = re.search(r"http://(127\.0\.0\.1):(\d+)/", watching.stdout.readline())
            connection = http.client.HTTPConnection(address[1], int(address[2]), timeout=PATIENCE_S)
            connection.request("GET", "/data.json")
            assert connection.getresponse().status == 200
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=PATIENCE_S) == 0
        finally:
            watching.kill()
