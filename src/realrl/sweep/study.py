"""Tables and figures of a study: each setting of a sweep over its seeds, compared with a reference setting and the paper."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from realrl.errors import DataError
from realrl.eval.benchmarks import PAPER_ROWS, PAPER_SOURCE
from realrl.eval.store import read_graded
from realrl.eval.tables import Table
from realrl.figures.distributions import figure_2
from realrl.figures.dynamics import figure_4, figure_5
from realrl.figures.statistics import Mean, holm, mean_of, p_value_of_zero
from realrl.rundir.paths import RunPaths
from realrl.rundir.runs import RunGroup, RunRecord, broken_lines, read_run
from realrl.sweep.outcome import Tuned
from realrl.sweep.plan import PlannedRun
from realrl.sweep.run import Progress

# The entropy at the end is averaged over this many steps.
_LAST_STEPS = 10


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One finished run. `reward_area` is the mean training reward over all steps: the area under its curve per step."""

    name: str
    setting: str
    seed: int
    tuned: str | None
    accuracy_before: float | None
    accuracy: float
    reward_area: float
    entropy: float
    training_s: float


@dataclass(frozen=True, slots=True)
class SettingFigures:
    """One setting over its seeds; `difference` is the paired difference to the reference on common seeds and problems."""

    setting: str
    tuned: str | None
    seeds: tuple[int, ...]
    accuracy: Mean
    difference: Mean | None
    p_value: float | None
    p_holm: float | None
    reward_area: Mean
    entropy: Mean
    paper: float | None


def study_tables(progress: Progress, folder: Path) -> str:
    """Write `study.md`, `settings.csv`, `runs.csv`, `tuning.csv`, `study.json` and Figures 2, 4 and 5 to `folder`.

    Returns the Markdown. Only finished runs count. Raises DataError if there are none, or if compared runs have different
    held-out problems.
    """
    finished = [run for run in progress.final_runs() if progress.look(run).state == "finished"]
    if not finished:
        raise DataError(f"no run of {progress.plan.path} is finished yet; first use realrl sweep {progress.plan.path}")
    if blind := [run.name for run in finished if not run.config.data.eval]:
        raise DataError(f"{blind[0]} has no held-out set, but the tables compare held-out accuracy; name a set in data.eval")
    records = [_record(run) for run in finished]
    runs = [_figures(run, record) for run, record in zip(finished, records, strict=True)]
    settings = _settings(finished, runs, progress.plan.file.reference)
    grid = progress.grid()
    text = _markdown(progress, settings, grid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.md").write_text(text)
    _write_csv(folder / "runs.csv", [asdict(run) for run in runs])
    _write_csv(folder / "settings.csv", [_flat(figures) for figures in settings])
    if grid:
        _write_csv(folder / "tuning.csv", _grid_rows(grid))
    document = {
        "sweep": str(progress.plan.path),
        "settings": [asdict(figures) for figures in settings],
        "tuning": _grid_rows(grid),
    }
    (folder / "study.json").write_text(json.dumps(document, indent=1) + "\n")
    seeds: dict[str, list[RunRecord]] = defaultdict(list)
    for run, record in zip(finished, records, strict=True):
        seeds[run.setting].append(record)
    groups = [RunGroup(setting, tuple(members)) for setting, members in seeds.items()]
    for draw in (figure_2, figure_4, figure_5):
        draw(groups, folder)
    return text


def _record(run: PlannedRun) -> RunRecord:
    record = read_run(run.folder)
    if record.broken:
        raise DataError(f"{broken_lines(record)}; remove the folder to run it again")
    return record


def _figures(run: PlannedRun, data: RunRecord) -> RunFigures:
    steps = run.config.train.steps
    names = [f"eval/{name}/sampled/accuracy" for name in run.config.data.eval]
    reward, entropy = data.series("reward/mean"), data.series("policy/entropy")
    before = [data.series(name).get(0) for name in names]
    return RunFigures(
        name=run.name,
        setting=run.setting,
        seed=run.seed,
        tuned=run.value,
        accuracy_before=None if None in before else mean(value for value in before if value is not None),
        accuracy=mean(data.series(name)[steps] for name in names),
        reward_area=mean(reward.values()),
        entropy=mean(list(entropy.values())[-_LAST_STEPS:]),
        training_s=round(sum(data.series("time/step_s").values()), 1),
    )


def _settings(finished: Sequence[PlannedRun], runs: Sequence[RunFigures], reference: str | None) -> list[SettingFigures]:
    by_setting: dict[str, dict[int, RunFigures]] = defaultdict(dict)
    problems: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for run, figures in zip(finished, runs, strict=True):
        by_setting[run.setting][run.seed] = figures
        problems[run.setting, run.seed] = _problem_means(run)
    paper = {row.name.lower(): row.values[-1] for row in PAPER_ROWS if row.table.startswith("Table 1,")}
    others = [setting for setting in by_setting if reference and setting != reference]
    differences = {setting: _paired(setting, str(reference), problems) for setting in others}
    p_values = {setting: p_value_of_zero(values) if values else None for setting, values in differences.items()}
    adjusted = dict(zip(others, holm(list(p_values.values())), strict=True))
    rows = []
    for setting, seeds in by_setting.items():
        figures = [seeds[seed] for seed in sorted(seeds)]
        rows.append(
            SettingFigures(
                setting=setting,
                tuned=figures[0].tuned,
                seeds=tuple(sorted(seeds)),
                accuracy=mean_of([run.accuracy for run in figures]),
                difference=mean_of(differences[setting]) if differences.get(setting) else None,
                p_value=p_values.get(setting),
                p_holm=adjusted.get(setting),
                reward_area=mean_of([run.reward_area for run in figures]),
                entropy=mean_of([run.entropy for run in figures]),
                paper=paper.get(setting),
            )
        )
    return rows


def _paired(setting: str, reference: str, problems: Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]]) -> list[float]:
    """The difference in accuracy, setting − reference, for each common seed: a mean over sets, on the same problems."""
    differences = []
    for (name, seed), ours in problems.items():
        theirs = problems.get((reference, seed))
        if name != setting or theirs is None:
            continue
        here, there = ({(name, problem) for name, found in sets.items() for problem in found} for sets in (ours, theirs))
        if here != there:
            raise DataError(
                f"{setting} and {reference} were evaluated on different problems with seed {seed}: "
                f"{len(here ^ there)} are not in both; use the same data.eval, data.task and eval.problems"
            )
        differences.append(
            mean(mean(found[problem] - theirs[name][problem] for problem in found) for name, found in ours.items())
        )
    return differences


def _problem_means(run: PlannedRun) -> dict[str, dict[str, float]]:
    """File of a held-out set → problem (id and text) → share of right samples at the last step."""
    means: dict[str, dict[str, float]] = {}
    for file in RunPaths(run.folder).evaluation_files("sampled", run.config.train.steps):
        right: dict[str, list[bool]] = defaultdict(list)
        ids, texts, statuses = read_graded(file, ("id", "problem", "status"), f"remove {run.folder} to run it again")
        for identity, text, status in zip(ids, texts, statuses, strict=True):
            right[f"{identity}/{text}"].append(status == "correct")
        means[file.name] = {problem: mean(values) for problem, values in right.items()}
    return means


def _markdown(progress: Progress, settings: Sequence[SettingFigures], grid: Sequence[Tuned]) -> str:
    file, reference = progress.plan.file, progress.plan.file.reference
    planned = len(progress.plan.final_names)
    made = sum(len(figures.seeds) for figures in settings)
    header = ["setting", *([file.tune.key] if file.tune else []), "seeds", "held-out accuracy"]
    if reference:
        header += [f"− {reference}, paired", "p", "p (Holm)"]
    header += ["mean reward", "entropy at the end"]
    shows_paper = any(figures.paper is not None for figures in settings)
    header += ["paper's Avg."] if shows_paper else []
    rows = []
    for figures in settings:
        row = [
            figures.setting,
            *([str(figures.tuned)] if file.tune else []),
            str(len(figures.seeds)),
            _interval(figures.accuracy),
        ]
        if reference:
            row += [
                _interval(figures.difference, signed=True),
                _p(figures.p_value),
                _p(figures.p_holm),
            ]
        row += [_interval(figures.reward_area), _interval(figures.entropy)]
        row += [("-" if figures.paper is None else f"{figures.paper:.3f}")] if shows_paper else []
        rows.append(row)
    parts = [
        f"{made} of {planned} runs are finished. Means over seeds with 95 % intervals by Student's t; differences compare runs "
        "with the same seed on the same held-out problems.",
        Table(header, rows).markdown(),
    ]
    if shows_paper:
        parts.append(
            f"Paper's Avg.: the mean over its six benchmarks in Table 1, for a model with 1.5B parameters ({PAPER_SOURCE}).\n"
        )
    if grid and file.tune:
        parts.append(_grid_table(file.tune.key, grid))
    return "\n".join(parts)


def _grid_table(key: str, grid: Sequence[Tuned]) -> str:
    values = list(dict.fromkeys(cell.value for cell in grid))
    rows: dict[str, list[str]] = {}
    for cell in grid:
        text = f"{mean(cell.accuracies.values()):.3f} ({len(cell.accuracies)})" if cell.accuracies else "-"
        rows.setdefault(cell.variant, [cell.variant]).append(f"**{text}**" if cell.chosen else text)
    table = Table([key, *values], list(rows.values()))
    return f"Held-out accuracy by {key}: mean over tuning seeds (their number), chosen values in bold.\n\n{table.markdown()}"


def _grid_rows(grid: Sequence[Tuned]) -> list[dict[str, Any]]:
    return [
        {"variant": cell.variant, "value": cell.value, "seed": seed, "accuracy": accuracy, "chosen": cell.chosen}
        for cell in grid
        for seed, accuracy in cell.accuracies.items()
    ]


def _interval(found: Mean | None, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    sign = "+" if signed else ""
    bounds = f" ({found.low:{sign}.3f} to {found.high:{sign}.3f})" if found.low is not None and found.high is not None else ""
    return f"{found.value:{sign}.3f}{bounds}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _flat(figures: SettingFigures) -> dict[str, Any]:
    """A setting as a row; a mean takes three columns: its value and the ends of its interval."""
    row: dict[str, Any] = {}
    for name, value in asdict(figures).items():
        if isinstance(value, dict):
            row |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            row[name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return row


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    # The reference's row has fewer columns than the others, because it has no difference.
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
