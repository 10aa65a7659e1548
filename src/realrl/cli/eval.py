"""`realrl eval MODEL` and `realrl eval compare A B`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from realrl.cli.common import quiet_libraries, say


class _EvalGroup(TyperGroup):
    """`realrl eval MODEL` and `realrl eval compare A B`: a first word other than "compare" is the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] == ["compare"] else ["run", *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Leave the name `run` out of usage lines, because users do not write it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name if name == "compare" else "", command, rest


app = typer.Typer(cls=_EvalGroup)


@app.command(name="run", epilog="To compare two evaluated models on the same problems: realrl eval compare FOLDER_A FOLDER_B.")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a checkpoint, a hub name, or the model's name on the server. With --regrade: the folder of "
            "an evaluation."
        ),
    ],
    benchmarks: Annotated[
        str, typer.Option("--benchmarks", "-b", help="Comma-separated named sets, generated tasks or files.")
    ] = "",
    samples: Annotated[
        int | None, typer.Option(min=1, max=2**20, help="Samples per problem; default: the recipe's, or 16.")
    ] = None,
    problems: Annotated[
        int | None, typer.Option(min=1, help="Use only the first problems; a generated task has 128 by default.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy; default: the recipe's, or 0.6.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="Default: the recipe's, or 0.95.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=2**20, help="Maximum tokens of a response; default: the recipe's, or 8192.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="Verifier; default: the recipe's, or math.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Take the prompt, sampling and reward settings from this recipe.")] = None,
    engine: Annotated[
        str, typer.Option(help="hf, vllm, or auto: vllm if there is a GPU and vllm is installed, otherwise hf.")
    ] = "auto",
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of an OpenAI-compatible server (…/v1). Its key is read from the variable OPENAI_API_KEY."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Maximum simultaneous requests to the server.")] = 16,
    retries: Annotated[int, typer.Option(min=0, help="Retries per failed request to the server.")] = 6,
    timeout: Annotated[float, typer.Option(min=1, max=10**6, help="Seconds to wait for one response of the server.")] = 1800,
    batch_rows: Annotated[int, typer.Option(min=1, help="Maximum responses decoded together.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 if it is faster on this machine.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the sampling; the same seed gives the same responses.")] = 0,
    output: Annotated[
        str | None,
        typer.Option("-o", help="Folder for responses and results; default: runs/eval/MODEL, with _ instead of /."),
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the saved responses of a folder again, without a model.")
    ] = False,
    show_paper: Annotated[
        bool, typer.Option("--show-paper", help="Add the numbers of the paper's Tables 1 and 2, marked as the paper's.")
    ] = False,
) -> None:
    """Pass@1 of a model on benchmarks, with confidence intervals. An interrupted evaluation continues where it stopped."""
    from realrl.eval.run import EvalRequest, run_eval

    quiet_libraries()
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


@app.command(name="compare")
def compare(
    a: Annotated[str, typer.Argument(help="Folder of the first model's evaluation.")],
    b: Annotated[str, typer.Argument(help="Folder of the second model's evaluation.")],
    output: Annotated[str | None, typer.Option("-o", help="Write the results to this JSON file.")] = None,
) -> None:
    """The paired difference b − a on the problems that both have, with a 95 % interval and a p-value."""
    import json
    from pathlib import Path

    from realrl.eval.compare import compare_evaluations

    table, records = compare_evaluations(Path(a), Path(b))
    say(f"a: {a}\nb: {b}\n{table.markdown()}".rstrip("\n"))
    if output:
        Path(output).write_text(json.dumps(records, indent=1) + "\n")
