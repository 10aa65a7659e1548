"""The pool of grading workers under load and faults: every answer gets its own verdict, in order, in bounded memory."""

import os
import random
import signal
from pathlib import Path

import pytest
from patience import wait_until
from processes import is_gone

from realrl.verifier.pool import VerifierPool

CAMPAIGN = bool(os.environ.get("REALRL_CAMPAIGN"))
# A response and why it gets no verdict; the verifier is tests/support/pool_verifiers.py.
HOSTILE = {
    "hang": "no verdict within 2 s",
    "die": "died",
    "exit": "died",
    "crash": "died",
    "talk": "died",
    "raise": "ValueError",
    "hoard": "MemoryError",
    "nest": "RecursionError",
    "object": "TypeError",
}


@pytest.fixture
def pool():
    with_two = VerifierPool("pool_verifiers:hang_or_die", workers=2, timeout_s=2)
    yield with_two
    with_two.close()


def memory_mib(process, field):
    """A line of the kernel's account of a process (Linux); 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def test_a_crowd_with_one_hostile_answer_in_twenty_is_judged_whole_and_in_order(pool):
    """1,000 answers, of a campaign 100,000; some of the workers are killed from outside as well."""
    count, rng = 100_000 if CAMPAIGN else 1_000, random.Random(0)
    responses = [rng.choice(list(HOSTILE)) if rng.random() < 0.05 else f"answer {n}" for n in range(count)]
    golds = [text if n % 3 else "another" for n, text in enumerate(responses)]
    own, workers, killed, done = memory_mib(os.getpid(), "VmRSS"), [0.0], set(), []

    def progress(finished):
        done.append(finished)
        for worker in pool._workers:
            workers[0] = max(workers[0], memory_mib(worker.process.pid, "VmHWM"))
        if finished // 97 not in killed and pool._workers:
            killed.add(finished // 97)
            os.kill(rng.choice(pool._workers).process.pid, signal.SIGKILL)

    results = pool.grade(list(zip(responses, golds, strict=True)), progress)
    grown = memory_mib(os.getpid(), "VmRSS") - own
    assert done == sorted(done) and done[-1] == count and len(killed) > count / 100
    lost = 0
    for response, gold, result in zip(responses, golds, results, strict=True):
        if response in HOSTILE:
            # On a busy machine a kill from outside, or the deadline, may come before what it does.
            reasons = (HOSTILE[response], "died", "no verdict")
            assert result.status == "grader_error" and any(reason in result.reason for reason in reasons), (response, result)
        elif result.status == "grader_error":
            # Two kills from outside in a row may meet one answer.
            assert "died" in result.reason
            lost += 1
        else:
            assert (result.status, result.extracted) == ("correct" if response == gold else "wrong", response)
    assert lost <= len(killed) // 20
    # A worker is Python and a small module; the parent keeps the verdicts, some hundred bytes each.
    assert workers[0] < 128 and grown < 16 + count / 1000
    if CAMPAIGN:
        print(f"{len(killed)} kills, {lost} answers lost to them; worker {workers[0]:.0f} MiB, parent + {grown:.0f} MiB")


def test_an_answer_whose_worker_is_killed_is_judged_by_another(pool):
    victims = []

    def progress(done):
        busy = [worker.process.pid for worker in pool._workers if worker.item is not None]
        if busy and not victims:
            victims.append(busy[0])
            os.kill(busy[0], signal.SIGKILL)

    results = pool.grade([("hang", "")] + [(str(n), str(n)) for n in range(50)], progress)
    assert [result.status for result in results] == ["grader_error"] + ["correct"] * 50
    assert len(victims) == 1 and "no verdict" in results[0].reason
    # Idle, too.
    for worker in pool._workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    assert [result.status for result in pool.grade([("a", "a")] * 4)] == ["correct"] * 4


def test_what_an_interrupted_call_left_undone_answers_nothing_of_the_next(pool):
    def interrupt(done):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.grade([("hang", ""), ("old", "old")], interrupt)
    # The last one goes on for longer than the one that was left.
    *results, last = pool.grade([(f"new {n}", f"new {n}") for n in range(20)] + [("hang", "")])
    assert [result.extracted for result in results] == [f"new {n}" for n in range(20)] and "no verdict" in last.reason


def test_a_worker_ends_with_what_it_started_and_a_terminals_interrupt_does_not_reach_it(pool, tmp_path):
    spawned = tmp_path / "spawned"
    result, _ = pool.grade([("spawn", str(spawned)), ("a", "a")])
    assert "no verdict" in result.reason
    # The child would end by itself after 600 s.
    wait_until(lambda: is_gone(int(spawned.read_text())), within_s=300)
    assert all(os.getpgid(worker.process.pid) not in (os.getpgid(0), 0) for worker in pool._workers)


def test_workers_that_start_after_failures_are_no_broken_verifier(pool, monkeypatch):
    """Twelve workers are killed while they start, never four in a row: every answer is judged."""
    fates = iter("xxx.xxx.xxx.xxx." + "." * 100)

    class Doomed(pool_module()._Worker):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if next(fates) == "x":
                self.process.kill()

    monkeypatch.setattr(pool_module(), "_Worker", Doomed)
    pool._count, pool._recycle = 1, 2
    assert [result.status for result in pool.grade([("a", "a")] * 8)] == ["correct"] * 8


def pool_module():
    import realrl.verifier.pool

    return realrl.verifier.pool
