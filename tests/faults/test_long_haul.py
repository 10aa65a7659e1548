"""2,000 steps: memory, open files, threads and processes stay what they were after the warm-up."""

import re
from pathlib import Path

import pytest
from children import train_child
from small_runs import CAMPAIGN

STEPS, WARM_UP = 2000, 400
SECTIONS = {
    "train": {"steps": STEPS, "prompts_per_step": 2, "mini_batch_prompts": 1},
    "sampling": {"group_size": 2, "max_new_tokens": 4},
    "eval": {"every": 100, "problems": 2},
    "checkpoint": {"every": 50},
}


def usage(pid):
    """(MiB resident, open files, threads, child processes) of a process."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    children = sum(
        len(Path(f"/proc/{pid}/task/{task.name}/children").read_text().split()) for task in Path(f"/proc/{pid}/task").iterdir()
    )
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]), children


@pytest.mark.skipif(not CAMPAIGN, reason="minutes; set REALRL_CAMPAIGN=1")
def test_nothing_grows(tiny_folder, tmp_path):
    child = train_child(tiny_folder, tmp_path / "run", **SECTIONS)
    seen = []
    while child.wait(0.25) is None:
        try:
            steps = re.findall(r"step +(\d+)/2000", child.out())
            seen.append((int(steps[-1]) if steps else 0, *usage(child.pid)))
        except (FileNotFoundError, ProcessLookupError):
            break
    assert child.wait() == 0, child.out()[-2000:]
    warm = [values for step, *values in seen if WARM_UP <= step < WARM_UP + 200]
    late = [values for step, *values in seen if step >= WARM_UP + 200]
    assert len(late) > 20
    before, after = ([max(column) for column in zip(*rows, strict=True)] for rows in (warm, late))
    print(f"MiB, files, threads, children: steps 400 to 600 {before}, later {after}, at the end {seen[-1]}")
    assert after[0] < before[0] + 32
    assert all(later <= earlier + 1 for later, earlier in zip(after[1:], before[1:], strict=True))
