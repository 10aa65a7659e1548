"""The command line: `realrl train | eval | report | …` (realrl --help lists all); recipe keys go by their dotted names."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from realrl.errors import RealrlError
from realrl.system.memory import keep_freed_memory

if TYPE_CHECKING:
    from realrl.config import Config
    from realrl.train import Summary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language models with verifiable rewards as labels (REAL, arXiv 2602.05630).",
)
_WITH_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
# Name and password in a URL.
_LOGIN = re.compile(r"://[^/\s@]+@")
_OVERRIDES_HELP = "Any key of the recipe can be given by its dotted name, e.g. --optim.lr 1e-6 --train.steps 10."


def main() -> None:
    """Entry point: the project's own errors become one line on stderr and exit status 1."""
    if sys.platform == "win32":
        _fail("realrl runs on Linux and macOS; on Windows use Linux in WSL2 (docs/platforms.md)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait slow a shared machine down many times over; read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows what it can.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except RealrlError as error:
        _fail(str(error))
    except OSError as error:
        # The system's word on a file, a disk or a connection: nothing that a traceback would add to.
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except KeyboardInterrupt:
        say("realrl: interrupted; train goes on with --resume, eval with the same command", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
    say(f"realrl: error{rank}: " + _LOGIN.sub("://…@", message).replace("\n", " "), file=sys.stderr)
    sys.exit(1)


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print lines for a person. All that the commands print goes through here, because names, paths and errors hold text of
    models and data: what could steer a terminal is shown as its escape."""
    from realrl.system.terminal import printable

    print("\n".join(map(printable, text.split("\n"))), file=file or sys.stdout, flush=True)


@app.command(context_settings=_WITH_OVERRIDES, epilog=_OVERRIDES_HELP)
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the run folder's newest checkpoint, or begin; give the same overrides."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --resume: go on though the changed recipe makes steps incomparable.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data with any bad row (data.strict).")] = False,
) -> None:
    """Train a model as the recipe says; on several devices: torchrun --nproc-per-node 8 -m realrl train RECIPE.toml.

    Exit status: 0 the last step is done; 130 or 143 stopped by Ctrl-C or SIGTERM, after the step in progress was saved (a
    second one stops at once); 1 an error.
    """
    from realrl.config import load_config
    from realrl.train import train as run_training

    overrides = parse_overrides(context.args) | ({"data.strict": "true"} if strict else {})
    config = load_config(recipe, overrides)
    _quiet_libraries()
    summary = run_training(config, resume=resume, overwrite=overwrite, force=force)
    if summary is None:
        return
    if config.log.figure:
        from realrl.figures.learning_curve import learning_curve

        try:
            learning_curve(summary.folder, summary.folder / "learning_curve.png")
        except OSError as error:
            say(f"realrl: learning_curve.png cannot be written: {error}", file=sys.stderr)
    _print_summary(summary, recipe, overrides, config)
    if summary.signum:
        raise typer.Exit(128 + summary.signum)


@app.command(context_settings=_WITH_OVERRIDES, epilog=_OVERRIDES_HELP)
def estimate(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")],
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean tokens of a prompt; default: as the data has them.")
    ] = None,
    response_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean tokens of a response; default: 0.6 × sampling.max_new_tokens.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(min=1e6, help="FLOP/s of a plain product on each GPU of another machine; default: this one.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that share the work.")] = 1,
) -> None:
    """Time, memory and disk that a recipe will take; elsewhere: realrl estimate RECIPE.toml --flops 4e14 --gpus 8."""
    from realrl.config import load_config
    from realrl.train import estimate as lines_of

    config = load_config(recipe, parse_overrides(context.args))
    _quiet_libraries()
    for line in lines_of(config, prompt_tokens=prompt_tokens, response_tokens=response_tokens, flops=flops, gpus=gpus):
        say(line)


class _EvalGroup(TyperGroup):
    """`realrl eval MODEL` and `realrl eval compare A B`: what is no name of a command is the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] == ["compare"] else ["run", *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command's name as a usage line shows it: nobody writes `run`."""
        name, command, rest = super().resolve_command(ctx, args)
        return name if name == "compare" else "", command, rest


eval_app = typer.Typer(cls=_EvalGroup)
app.add_typer(eval_app, name="eval", help="Evaluate a model on benchmarks; compare two evaluations.")
_COMPARE_HELP = "Two evaluated models on the same problems: realrl eval compare FOLDER_A FOLDER_B."


@eval_app.command(name="run", epilog=_COMPARE_HELP)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a checkpoint, a hub name, or the model's name on the server; with --regrade, "
            "the folder of an evaluation."
        ),
    ],
    benchmarks: Annotated[
        str, typer.Option("--benchmarks", "-b", help="Named sets, generated tasks or files, parted by commas.")
    ] = "",
    samples: Annotated[
        int | None, typer.Option(min=1, max=2**20, help="Samples of each problem; default: the recipe's, or 16.")
    ] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="Only the first problems; of a generated task 128.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy; default: the recipe's, or 0.6.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="Default: the recipe's, or 0.95.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, max=2**20, help="Default: the recipe's, or 8192.")] = None,
    reward: Annotated[str | None, typer.Option(help="Verifier; default: the recipe's, or math.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Take prompt, sampling and reward from this recipe.")] = None,
    engine: Annotated[
        str, typer.Option(help='auto (vllm on a GPU where installed, else hf), hf, vllm, or a class as "module:Class".')
    ] = "auto",
    endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible server (…/v1); its key: OPENAI_API_KEY of the environment.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Requests at a time to the server.")] = 16,
    retries: Annotated[int, typer.Option(min=0, help="Tries more of a request that the server could not serve.")] = 6,
    timeout: Annotated[float, typer.Option(min=1, max=10**6, help="Seconds that one response of the server may take.")] = 1800,
    batch_rows: Annotated[int, typer.Option(min=1, help="Responses decoded together at most.")] = 64,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where that is faster on this machine.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of all draws; the same one gives the same responses.")] = 0,
    output: Annotated[
        str | None, typer.Option("-o", help="Folder of generations and results; default: runs/eval/MODEL, with _ for /.")
    ] = None,
    regrade: Annotated[bool, typer.Option("--regrade", help="Grade a folder's generations again, without a model.")] = False,
    show_paper: Annotated[bool, typer.Option("--show-paper", help="Add the paper's Tables 1 and 2, marked as such.")] = False,
) -> None:
    """Pass@1 of a model on benchmarks with intervals; killed and started again, it goes on where it was."""
    from realrl.eval.run import EvalRequest, run_eval

    _quiet_libraries()
    request = EvalRequest(
        model=model,
        benchmarks=tuple(name.strip() for name in benchmarks.split(",") if name.strip()),
        samples=samples,
        problems=problems,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        reward=reward,
        recipe=recipe,
        engine=engine,
        endpoint=endpoint,
        concurrency=concurrency,
        retries=retries,
        timeout=timeout,
        batch_rows=batch_rows,
        dtype=dtype,
        seed=seed,
        output=output,
        regrade=regrade,
        show_paper=show_paper,
    )
    say(run_eval(request))


@eval_app.command(name="compare")
def compare(
    a: Annotated[str, typer.Argument(help="Folder of one model's evaluation.")],
    b: Annotated[str, typer.Argument(help="Folder of the other's.")],
    output: Annotated[str | None, typer.Option("-o", help="Write the figures to this JSON file.")] = None,
) -> None:
    """The paired difference b − a on the problems that both have, with a 95 % interval and a p-value."""
    import json
    from pathlib import Path

    from realrl.eval.compare import compare_evaluations

    table, records = compare_evaluations(Path(a), Path(b))
    say(f"a: {a}\nb: {b}\n{table.markdown()}".rstrip("\n"))
    if output:
        Path(output).write_text(json.dumps(records, indent=1) + "\n")


@app.command(name="show-config", context_settings=_WITH_OVERRIDES, epilog=_OVERRIDES_HELP)
def show_config(context: typer.Context, recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")]) -> None:
    """Print the resolved recipe, defaults and overrides included."""
    from realrl.config import dump_config, load_config

    say(dump_config(load_config(recipe, parse_overrides(context.args))).rstrip("\n"))


@app.command(context_settings=_WITH_OVERRIDES, epilog=_OVERRIDES_HELP)
def export(
    context: typer.Context,
    engine: Annotated[
        Literal["trl", "verl"], typer.Argument(help="trl: a script for accelerate; verl: its launcher's command.")
    ],
    recipe: Annotated[str, typer.Argument(help="Path of a recipe (TOML).")],
    output: Annotated[
        str | None, typer.Option("-o", help="Write the script and its data into this folder; default: print the script.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Processes of each node, one for each GPU.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that has files.")] = False,
) -> None:
    """A recipe as what TRL or verl runs: one node or many, the same objective."""
    import shlex
    from pathlib import Path

    from realrl.config import load_config
    from realrl.integrations.export import Machines, export_trl, export_verl

    _quiet_libraries()
    words = ["realrl", "export", engine, recipe, "--gpus-per-node", str(gpus_per_node), "--nodes", str(nodes), *context.args]
    config = load_config(recipe, parse_overrides(context.args))
    exported = {"trl": export_trl, "verl": export_verl}[engine](
        config, Machines(gpus_per_node, nodes), made_by=" ".join(map(shlex.quote, words))
    )
    for note in exported.notes:
        say(f"{engine}: {note}", file=sys.stderr)
    if output is None:
        say(exported.script.rstrip("\n"))
        return
    exported.write(Path(output), overwrite=overwrite)
    say(f"cd {shlex.quote(output)} && {exported.command}")


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="Path of a sweep file (TOML): a base recipe and what its runs change.")],
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    only: Annotated[str, typer.Option(help="Only runs whose name fits this pattern, e.g. 'real-*'.")] = "*",
    list_runs: Annotated[bool, typer.Option("--list", help="List the runs and how they stand; run nothing.")] = False,
    table: Annotated[
        str | None, typer.Option(help="Write tables and figures of the finished runs into this folder; run nothing.")
    ] = None,
) -> None:
    """Make many runs as processes of their own; started again, it goes on where it was. Exit status 1: a run is missing."""
    from pathlib import Path

    from realrl.sweep import Progress, load_sweep, run_sweep

    plan = load_sweep(file)
    if table is not None:
        from realrl.sweep.study import study_tables

        say(study_tables(Progress(plan), Path(table)).rstrip("\n"))
        return
    progress = Progress(plan, only) if list_runs else run_sweep(plan, jobs=jobs, only=only)
    say(progress.table().markdown().rstrip("\n"))
    if progress.interrupted:
        say("realrl: interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(130)
    if not list_runs and any(row["status"] != "finished" for row in progress.rows()):
        raise typer.Exit(1)


@app.command()
def grade(
    file: Annotated[
        str, typer.Argument(help="Rows with response and answer (text, or a list of accepted ones); label: is it right?")
    ],
    output: Annotated[str | None, typer.Option("-o", help="Write the rows with their verdicts to this JSONL file.")] = None,
    reward: Annotated[str, typer.Option(help='Verifier: a registered name, or a function as "module:name".')] = "math",
    compare: Annotated[str | None, typer.Option(help="Second grader: math-verify or deepscaler.")] = None,
    require_boxed: Annotated[bool, typer.Option("--require-boxed", help="Only a boxed answer counts.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Grading processes.")] = 2,
) -> None:
    """Grade responses against gold answers; with --compare, list where a second grader disagrees."""
    from realrl.config import RewardSection
    from realrl.rewards.grade_file import grade_file
    from realrl.system.terminal import printable

    section = RewardSection(type=reward, require_boxed=require_boxed, workers=workers)
    report = grade_file(file, output, reward=section, compare=compare)
    for title, counts in (("status", report.statuses), ("stage", report.stages)):
        say(f"{title}: " + ", ".join(f"{name or '-'} {count}" for name, count in counts.most_common()))
    if any(isinstance(row.get("label"), bool) for row in report.rows):
        for name in ("status", *([f"status_{compare}"] if compare else [])):
            say(f"against the labels, {name}: {report.errors(name)}")
    if compare:
        say(f"disagreements with {compare}: {len(report.disagreements)} of {len(report.rows)}")
        for row in report.disagreements[:20]:
            answer, gold = (printable(str(row[key]))[:80] for key in ("extracted", "answer"))
            statuses = f"ours {row['status']}, {compare} {row[f'status_{compare}']}"
            say(f"  {statuses}: answer {answer} gold {gold} ({row['stage']}: {printable(row['reason'])})")


@app.command()
def figures(
    output: Annotated[str, typer.Option("-o", help="Folder of the figures, each as PNG, SVG and CSV.")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders; those that differ by run.seed alone are averaged.", metavar="[RUN]..."),
    ] = None,
) -> None:
    """The gradient weights of every objective; with runs also their dynamics, side by side."""
    from pathlib import Path

    from realrl.figures.write import write_figures

    report = write_figures(runs or [], Path(output))
    for path in report.written:
        say(str(path))
    for reason in report.skipped:
        say(f"skipped: {reason}", file=sys.stderr)


data_app = typer.Typer(no_args_is_help=True, help="Data sets: list them, show problems, check the gold answers.")
app.add_typer(data_app, name="data")


@data_app.command(name="list")
def list_data() -> None:
    """The named sets and generated tasks, and where each would be read from."""
    from realrl.data.datasets import list_sets
    from realrl.data.tasks import TASKS

    for name, local, hub in list_sets():
        say(f"{name:20}{local or f'not found locally; hub: {hub}'}")
    say(f"generated: {', '.join(TASKS)}")
    say("amc23: the 40 problems of 2023; amc22_23: 83 of 2022 and 2023, which the paper's code evaluates under the name AMC23")


@data_app.command(name="show")
def show_data(
    name: Annotated[str, typer.Argument(help="A named set, a generated task, a file, or a hub name.")],
    count: Annotated[int, typer.Option(min=1, help="Problems to show.")] = 3,
    skip: Annotated[int, typer.Option(min=0, help="Problems to pass over first.")] = 0,
) -> None:
    """Some problems of a data set with their gold answers."""
    from realrl.data import load_problems
    from realrl.system.terminal import printable

    loaded = load_problems(name)
    say(f"{name}: {len(loaded.problems)} problems, {loaded.bad_rows} bad rows")
    for line in loaded.warnings():
        say(printable(line))
    for index in range(skip, min(skip + count, len(loaded.problems))):
        problem = loaded.problems[index]
        say(f"\n{printable(problem.id)}\n  {printable(problem.problem)}\n  gold: {printable(' | '.join(problem.golds))}")


@data_app.command(name="check")
def check_data(
    name: Annotated[str, typer.Argument(help="A named set, a file, or a hub name.")],
    reward: Annotated[str, typer.Option(help="Verifier that has to accept each gold.")] = "math",
    against: Annotated[str, typer.Option(help="Evaluation sets, parted by commas, whose problems to look for.")] = "",
    shown: Annotated[int, typer.Option(min=0, help="Rows listed of each kind at most.")] = 50,
) -> None:
    """Hold every gold answer against itself; count repeated problems and overlaps.

    Exit status 1 where more than 1 gold in 200 fails.
    """
    from realrl.config import RewardSection
    from realrl.data.cleaning import count_overlap, deduplicate, find_overlap, load_listed
    from realrl.rewards.golds import check_golds
    from realrl.system.terminal import printable

    loaded = load_listed(name)
    others = {other: load_listed(other).problems for part in against.split(",") if (other := part.strip())}
    problems = [loaded.problems[index] for index in range(len(loaded.problems))]
    report = check_golds(problems, RewardSection(type=reward))
    passed = report.total - len(report.failures)
    say(f"{name}: {passed} of {report.total} golds pass ({passed / report.total:.2%}); {loaded.bad_rows} bad rows left out")
    for line in loaded.warnings():
        say(printable(line))
    for problem, verdict in report.failures[:shown]:
        gold = printable(problem.answer)[:100]
        say(f"  fails: {printable(problem.id)} gold {gold}: {verdict.status}, {printable(verdict.reason)}")
    say(f"compared as text only by the parser, else by computer algebra: {len(report.text_only)}")
    for problem in report.text_only[:shown]:
        say(f"  {printable(problem.id)} gold {printable(problem.answer)[:100]}")
    found = deduplicate(problems)
    conflicts = f"{found.conflicting} of {len(found.conflicts)} problems"
    say(f"repeated problems: {found.repeated}; rows whose golds conflict: {conflicts}")
    for group in found.conflicts[:shown]:
        say("  " + "; ".join(f"{printable(problem.id)} gold {printable(problem.answer)[:40]}" for problem in group))
    for other, evaluated in others.items():
        pairs = find_overlap(problems, evaluated)
        say(f"overlap with {other}: {count_overlap(pairs)}")
        for pair in pairs[:shown]:
            say(f"  {printable(pair.train.id)} holds {pair.containment:.0%} of {printable(pair.evaluated.id)}")
    if passed < 0.995 * report.total:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders, and folders of realrl eval.", metavar="RUN")],
    output: Annotated[str, typer.Option("-o", help="The HTML file.")] = "report.html",
    compare: Annotated[
        str | None, typer.Option(help="A second grader for the rollouts shown: math-verify or deepscaler.")
    ] = None,
) -> None:
    """One HTML file that opens offline: curves, scores, evaluation, alarms, recipes and rollouts of some runs."""
    from pathlib import Path

    from realrl.report.report import write_report

    size = write_report([Path(run) for run in dict.fromkeys(runs)], Path(output), compare)
    say(f"{output}: {size / 1e6:.1f} MB")


@app.command(name="debug-batch")
def debug_batch(
    file: Annotated[str, typer.Argument(help="A file of a run's debug/: a mini-batch whose update was skipped.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder to replay it on; default: the run's newest checkpoint up to that step.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code of a model that the run's recipe trusted.")
    ] = False,
) -> None:
    """Compute a mini-batch again whose loss or gradient was not finite, and say what is not."""
    from pathlib import Path

    from realrl.train.debug import replay

    _quiet_libraries()
    say(replay(Path(file), model, trust_remote_code=trust_remote_code))


@app.command(name="check-model")
def check_model(
    path: Annotated[str, typer.Argument(help="A folder, a built-in model or a hub name.", metavar="PATH")],
    longest: Annotated[int, typer.Option(help="Tokens of the longest row that is tried.")] = 38,
    everything: Annotated[
        bool, typer.Option("--all", help="With LoRA on the head and a checkpoint: needs disk for the model and its optimizer.")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that the model brings.")] = False,
) -> None:
    """Whether a model's log-probabilities, gradients and samples are exact, in float32 against plain transformers."""
    from realrl.train.check_model import CHECKS, QUICK, check_model

    _quiet_libraries()
    wrong = False
    for part, found in check_model(
        path, longest, parts=tuple(CHECKS) if everything else QUICK, trust_remote_code=trust_remote_code
    ):
        size = "" if found.error is None else f"{found.error:.1e} {'nats' if part in ('logprobs', 'sampling') else 'at most'}"
        say(f"{part:14}{found.status:9}{size:14}{found.message}".rstrip())
        wrong |= found.status == "WRONG" or (found.status == "refused" and part in ("logprobs", "gradient"))
    if wrong:
        raise typer.Exit(1)


@app.command()
def watch(
    run: Annotated[str, typer.Argument(help="A run folder, also before the run has made it.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
) -> None:
    """The report of a run on 127.0.0.1, refreshed as the run goes; Ctrl-C ends it."""
    from pathlib import Path

    from realrl.report.watch import watch as serve

    serve(Path(run), port, lambda url: say(f"{run} at {url} (Ctrl-C ends)"))


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`["--optim.lr", "1e-6", "--data.strict=true"]` as a mapping; anything else is a usage error."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or "." not in name:
            raise typer.BadParameter(f"unexpected argument {name!r}; overrides are written --section.key value")
        name, equals, value = name.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise typer.BadParameter(f"--{name} needs a value")
            value = rest.pop(0)
        overrides[name] = value
    return overrides


def _quiet_libraries() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _print_summary(summary: Summary, recipe: str, overrides: dict[str, str], config: Config) -> None:
    """What a run came to, and commands that go on from here."""
    import shlex

    from realrl.report.closing import closing_lines
    from realrl.system.terminal import printable

    def command(**changed: str) -> str:
        words = (overrides | {name.replace("_", "."): value for name, value in changed.items()}).items()
        return shlex.join(["realrl", "train", recipe, *(word for key, value in words for word in (f"--{key}", value))])

    say("")
    if summary.signum:
        say(f"stopped after step {summary.steps} of {summary.total}; continue with: {command()} --resume")
    for line in closing_lines(summary.folder, config.log.examples):
        say(printable(line))
    say(f"files in {summary.folder}: config.toml, metrics.jsonl, learning_curve.png, eval/, rollouts/, checkpoints/")
    if summary.checkpoint:
        say("next:")
        held_out = config.data.eval[0] if config.data.eval else config.data.train
        say(f"  realrl eval {summary.checkpoint} --recipe {summary.folder}/config.toml -b {held_out} --samples 4")
        seed = config.run.seed + 1
        say(f"  {command(run_dir=f'{summary.folder}-seed{seed}', run_seed=str(seed))}")
