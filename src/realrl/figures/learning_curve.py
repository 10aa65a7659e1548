"""The learning curve of a run, as a PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from realrl.rundir.metrics import is_accuracy, read_records
from realrl.rundir.paths import RunPaths


def learning_curve(run_dir: Path, output: Path) -> None:
    """Draw training reward, share of boxed answers, and held-out accuracy with standard errors, from metrics.jsonl.

    Values that are missing or in damaged lines are left out.
    """
    records, _ = read_records(RunPaths(Path(run_dir)).metrics)
    steps = [(record["step"], record) for record in records if "reward/mean" in record]
    figure, axis = plt.subplots(figsize=(8, 4.5))
    if steps:
        x = [step for step, _ in steps]
        reward = [record["reward/mean"] for _, record in steps]
        axis.plot(x, reward, color="tab:blue", alpha=0.35, linewidth=1)
        smooth = [sum(reward[max(0, i - 4) : i + 1]) / (i + 1 - max(0, i - 4)) for i in range(len(reward))]
        axis.plot(x, smooth, color="tab:blue", label="training reward, mean of 5 steps")
    boxed = [(record["step"], record["format/boxed_share"]) for record in records if "format/boxed_share" in record]
    if boxed:
        axis.plot(*zip(*boxed, strict=True), color="tab:gray", linestyle="--", label="answers in a box (format)")
    series: dict[str, list[tuple[int, float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if is_accuracy(key):
                name = key.removeprefix("eval/").removesuffix("/accuracy")
                error = record.get(key.replace("/accuracy", "/standard_error"), 0.0)
                series.setdefault(name, []).append((record["step"], value, error))
    for (name, points), colour in zip(sorted(series.items()), ["tab:green", "tab:orange", "tab:red"] * 9, strict=False):
        x, accuracy, error = zip(*points, strict=True)
        axis.errorbar(x, accuracy, yerr=error, fmt="o-", capsize=3, color=colour, label=f"held-out accuracy, {name} ± SE")
    axis.set(xlabel="step (sampling round)", ylim=(-0.02, 1.02), title=Path(run_dir).name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    if steps or boxed or series:
        axis.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=150)
    plt.close(figure)
