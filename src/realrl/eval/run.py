"""`realrl eval`: k samples of each problem of several benchmarks, stored as they finish and graded at the end."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from realrl.config import MIN_TEMPERATURE, Config, load_config, parse_config
from realrl.data import chat_messages, held_out_problems, plain_text, render_prompts
from realrl.errors import ConfigError, DataError, SamplingError
from realrl.eval.progress import Progress
from realrl.eval.runner import EvalResult, grade_generations
from realrl.eval.store import Generation, Store, prompt_digest, read_graded
from realrl.eval.tables import average, details_table, notes, summary_table
from realrl.models import layer_shape, load_tokenizer, weights_fingerprint
from realrl.models.precision import precision_notes
from realrl.rewards import Grader, build_grader
from realrl.rundir.rollouts import write_rollouts
from realrl.sampling import ENGINES, EngineOptions, SamplingParams, TextEngine, TextRequest, build_engine
from realrl.seeding import derive_seed
from realrl.system.files import clash, file_name, write_whole
from realrl.system.hardware import Rates, choose_device, measure_rates
from realrl.system.terminal import printable
from realrl.types import Problem

# The settings of the released code (scripts/eval/eval_model_8k.sh).
_TEMPERATURE, _TOP_P, _MAX_NEW_TOKENS, _SAMPLES = 0.6, 0.95, 8192, 16
_PROMPT_SUFFIX = "\nLet's think step by step and output the final answer within \\boxed{}."
_DTYPES = ("float32", "bfloat16")
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """The options of the command. None means the recipe's value, or without a recipe the released code's."""

    model: str
    benchmarks: tuple[str, ...]
    samples: int | None = None
    problems: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    reward: str | None = None
    recipe: str | None = None
    engine: str = "auto"
    endpoint: str | None = None
    concurrency: int = 16
    retries: int = 6
    timeout: float = 1800.0
    batch_rows: int = 64
    dtype: str = "auto"
    seed: int = 0
    output: str | None = None
    regrade: bool = False
    show_paper: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The problems of one benchmark with their prompts, and the size of the whole set."""

    name: str
    problems: list[Problem]
    requests: list[TextRequest]
    total: int

    def digests(self) -> list[str]:
        """The digest of each problem's prompt, as in the stored generations."""
        return [prompt_digest(request.text or json.dumps(request.messages)) for request in self.requests]


def run_eval(request: EvalRequest) -> str:
    """Generate the responses that are not stored yet, grade all, and write the reports. Returns the tables as text.

    Raises ConfigError for a model that cannot be loaded or a request that a server does not accept, SamplingError for an
    engine or server that fails, DataError for a data set or folder that cannot be used.
    """
    if request.regrade:
        return _regrade(request)
    if not request.benchmarks:
        raise ConfigError("no benchmark given; add --benchmarks aime24,math500 (realrl data list shows the names)")
    config = _config(request)
    samples = request.samples or (config.eval.samples if request.recipe else _SAMPLES)
    params = _sampling_params(request, config)
    if params.temperature == 0 and samples > 1:
        raise ConfigError(f"temperature 0 gives the same response {samples} times; use --samples 1 or a temperature above 0")
    engine_name = _engine_name(request)
    _check_file_names(request.benchmarks)
    benchmarks = [_benchmark(name, config, request) for name in dict.fromkeys(request.benchmarks)]
    folder = Path(request.output or Path("runs") / "eval" / file_name(request.model.strip("./")))
    settings = {
        "schema": _SCHEMA,
        "model": request.model,
        "weights": "" if request.endpoint else weights_fingerprint(request.model),
        "engine": engine_name,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_new_tokens": params.max_new_tokens,
        "seed": request.seed,
        "data": config.data.model_dump(mode="json", exclude={"train", "eval", "strict", "max_prompt_tokens"}),
        "benchmarks": {b.name: {"problems": len(b.problems), "of": b.total, "samples": samples} for b in benchmarks},
    }
    with build_grader(config.reward) as grader, Store(folder) as store:
        if not request.endpoint:
            settings |= {"dtype": _dtype(request, store)}
        store.keep_settings(settings)
        _generate(store, benchmarks, samples, params, settings, request)
        return _report(store, benchmarks, settings, config, grader, show_paper=request.show_paper)


def _check_file_names(benchmarks: Sequence[str]) -> None:
    """Raise ConfigError for benchmarks whose generations would be in the same file."""
    if pair := clash(benchmarks):
        first, second = pair
        raise ConfigError(f"{first!r} and {second!r} have the same file name, {file_name(second)}; evaluate them separately")


def _regrade(request: EvalRequest) -> str:
    """Grade the stored generations of the folder `request.model` again, without a model."""
    folder = Path(request.model)
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}; --regrade needs a folder that realrl eval wrote (-o)")
    with Store(folder) as store:
        settings = store.settings()
        names = request.benchmarks or tuple(settings["benchmarks"])
        if not names:
            raise DataError(f"{folder} has no generations of any benchmark; give the folder of another evaluation")
        unknown = [name for name in names if name not in settings["benchmarks"]]
        if unknown:
            raise DataError(f"{folder} has no generations of {', '.join(unknown)}; it has {', '.join(settings['benchmarks'])}")
        document: dict[str, Any] = {"model": {"path": settings["model"]}, "data": {"train": names[0], **settings["data"]}}
        reward = load_config(request.recipe).reward.model_dump() if request.recipe else {}
        document["reward"] = reward | ({"type": request.reward} if request.reward else {})
        config = parse_config(document)
        benchmarks = [
            Benchmark(name, _problems(name, config, settings["seed"], known["problems"])[0], [], known["of"])
            for name, known in settings["benchmarks"].items()
            if name in names
        ]
        for benchmark in benchmarks:
            _check_problems(benchmark, folder)
        settings = settings | {"benchmarks": {name: settings["benchmarks"][name] for name in names}}
        with build_grader(config.reward) as grader:
            return _report(store, benchmarks, settings, config, grader, show_paper=request.show_paper)


def _check_problems(benchmark: Benchmark, folder: Path) -> None:
    """Raise DataError if an id now means another problem than the one that its generations answer."""
    try:
        ids, texts = read_graded(folder / "samples" / f"{file_name(benchmark.name)}.parquet", ("id", "problem"), "grade again")
    except DataError:
        return  # not graded yet, or damaged; grading writes it again
    asked = dict(zip(ids, texts, strict=True))
    others = [problem.id for problem in benchmark.problems if asked.get(problem.id, problem.problem) != problem.problem]
    if others:
        raise DataError(
            f"{benchmark.name}: {len(others)} of {len(benchmark.problems)} problems are not those that the stored generations "
            f"answer, the first is {others[0]}; restore the data set, or evaluate again with another -o"
        )


def _config(request: EvalRequest) -> Config:
    """The recipe, or the released code's prompt and settings, with the verifier of the request."""
    if request.recipe:
        return load_config(request.recipe, {"reward.type": request.reward} if request.reward else None)
    return parse_config(
        {
            "model": {"path": request.model},
            "data": {"train": request.benchmarks[0], "prompt_suffix": _PROMPT_SUFFIX, "max_prompt_tokens": 4096},
            "reward": {"type": request.reward or "math"},
            "sampling": {"temperature": _TEMPERATURE, "top_p": _TOP_P, "max_new_tokens": _MAX_NEW_TOKENS},
        }
    )


def _sampling_params(request: EvalRequest, config: Config) -> SamplingParams:
    asked = request.temperature
    if asked is not None and not (asked == 0 or MIN_TEMPERATURE <= asked < math.inf):
        raise ConfigError(f"--temperature {asked} is not allowed; give 0, or at least {MIN_TEMPERATURE}")
    return SamplingParams(
        temperature=config.sampling.temperature if request.temperature is None else request.temperature,
        top_p=request.top_p or config.eval.top_p or config.sampling.top_p,
        top_k=config.sampling.top_k,
        max_new_tokens=request.max_new_tokens or config.sampling.max_new_tokens,
        batch_rows=request.batch_rows,
    )


def _engine_name(request: EvalRequest) -> str:
    if request.endpoint:
        if "@" in request.endpoint.partition("://")[2].partition("/")[0]:
            raise ConfigError(
                "--endpoint contains a name or password, which would be saved with the results; give the URL without it, and "
                "set the key as OPENAI_API_KEY in the environment"
            )
        return f"endpoint {request.endpoint}"
    if request.engine != "auto":
        # Refuses an unknown engine before any data is read.
        ENGINES.find(request.engine)
        return request.engine
    import importlib.util

    return "vllm" if torch.cuda.is_available() and importlib.util.find_spec("vllm") else "hf"


def _problems(name: str, config: Config, seed: int, count: int | None) -> tuple[list[Problem], int]:
    """The first `count` problems (all by default) and the size of the set. Prints on stderr how many rows were left out."""
    found = held_out_problems(config.data, name, seed=seed, count=count)
    for line in found.warnings:
        print(f"realrl: {printable(line)}", file=sys.stderr)
    seen: set[str] = set()
    for problem in found.problems:
        if problem.id in seen:
            raise DataError(
                f"{name}: the id {problem.id!r} occurs twice; stored generations are found by id, so make it unique"
            )
        seen.add(problem.id)
    return found.problems, found.total


def _benchmark(name: str, config: Config, request: EvalRequest) -> Benchmark:
    problems, total = _problems(name, config, request.seed, request.problems)
    if request.endpoint:
        plain = config.data.chat_template == "plain"
        requests = [
            TextRequest(
                text=plain_text(problem, config.data) if plain else "",
                token_ids=(),
                messages=() if plain else tuple(chat_messages(problem, config.data)),
                seed=0,
            )
            for problem in problems
        ]
        return Benchmark(name, problems, requests, total)
    rendered = render_prompts(problems, load_tokenizer(request.model), config.data)
    if rendered.too_long:
        raise DataError(
            f"{name}: {rendered.too_long} prompts are longer than data.max_prompt_tokens = {config.data.max_prompt_tokens}; "
            "raise it in the recipe, because without these problems it would be another benchmark"
        )
    return Benchmark(name, problems, [TextRequest(p.text, p.token_ids, (), 0) for p in rendered.prompts], total)


def _generate(
    store: Store,
    benchmarks: Sequence[Benchmark],
    samples: int,
    params: SamplingParams,
    settings: Mapping[str, Any],
    request: EvalRequest,
) -> None:
    """Generate every response that is not stored. The engine is loaded only if one is missing."""
    engine: TextEngine | None = None
    longest = max((len(one.token_ids) for benchmark in benchmarks for one in benchmark.requests), default=0)
    for benchmark in benchmarks:
        stored = store.load(benchmark.name)
        digests = benchmark.digests()
        missing: list[tuple[str, int, str]] = []
        requests = []
        for problem, prompt, digest in zip(benchmark.problems, benchmark.requests, digests, strict=True):
            for sample in range(samples):
                known = stored.get((problem.id, sample))
                if known is not None and known.prompt != digest:
                    raise DataError(
                        f"{store.folder} has generations of {benchmark.name} {problem.id} for another prompt (the data or the "
                        "chat template changed); choose another folder with -o"
                    )
                if known is None:
                    seed = derive_seed(request.seed, "eval", benchmark.name, problem.id, sample)
                    missing.append((problem.id, sample, digest))
                    requests.append(TextRequest(prompt.text, prompt.token_ids, prompt.messages, seed))
        if not missing:
            continue
        engine = engine or _engine(settings, request, params, longest)
        total = len(digests) * samples
        given = total - len(missing)
        try:
            with Progress(benchmark.name, total, given) as progress:
                for done in engine.generate(requests):
                    store.append(
                        benchmark.name,
                        [Generation(*missing[index], reply.text, reply.tokens, reply.truncated) for index, reply in done],
                    )
                    given += len(done)
                    progress.add(len(done), sum(reply.tokens or 0 for _, reply in done))
        except SamplingError as error:
            # The other requests are not needed any more.
            engine.close()
            raise SamplingError(
                f"{error}; {given} of {total} responses of {benchmark.name} are stored, the same command generates the others"
            ) from error
    if engine is not None:
        engine.close()


def _dtype(request: EvalRequest, store: Store) -> str:
    """The precision of the request. "auto" is that of the stored generations, or without any the faster one here."""
    if request.dtype not in ("auto", *_DTYPES):
        raise ConfigError(f"unknown --dtype {request.dtype!r}; known: auto, {', '.join(_DTYPES)}")
    if request.dtype != "auto":
        return request.dtype
    stored = store.settings().get("dtype") if store.begun() else None
    return stored if stored in _DTYPES else "bfloat16" if _rates(request.model).samples_in_bfloat16 else "float32"


@functools.cache
def _rates(model: str) -> Rates:
    return measure_rates(choose_device("auto"), *layer_shape(model))


def _engine(settings: Mapping[str, Any], request: EvalRequest, params: SamplingParams, longest_prompt: int) -> TextEngine:
    local = {}
    if not request.endpoint:
        local = {"dtype": settings["dtype"]}
        for line in precision_notes(_rates(request.model), {"sampling": local["dtype"]}, "give --dtype auto and another -o"):
            print(f"realrl: {line}", file=sys.stderr)
    options = EngineOptions(
        request.model,
        params,
        **local,
        longest_prompt=longest_prompt,
        seed=request.seed,
        endpoint=request.endpoint,
        concurrency=request.concurrency,
        retries=request.retries,
        timeout_s=request.timeout,
    )
    return build_engine("openai" if request.endpoint else settings["engine"], options)


def _report(
    store: Store,
    benchmarks: Sequence[Benchmark],
    settings: Mapping[str, Any],
    config: Config,
    grader: Grader,
    *,
    show_paper: bool,
) -> str:
    """Grade the stored generations and write samples/, results.json, results.md and results.tex. Returns the tables as text."""
    results: dict[str, EvalResult] = {}
    (store.folder / "samples").mkdir(exist_ok=True)
    for benchmark in benchmarks:
        samples = settings["benchmarks"][benchmark.name]["samples"]
        stored = store.load(benchmark.name)
        wanted = [(problem.id, sample) for problem in benchmark.problems for sample in range(samples)]
        absent = [key for key in wanted if key not in stored]
        if absent:
            raise DataError(
                f"{store.folder}: {len(absent)} of {len(wanted)} generations of {benchmark.name} are missing, the first is "
                f"{absent[0][0]}, sample {absent[0][1]}; run the same realrl eval again to generate them"
            )
        results[benchmark.name] = grade_generations(
            benchmark.problems, [stored[key] for key in wanted], grader, samples=samples
        )
        path = store.folder / "samples" / f"{file_name(benchmark.name)}.parquet"
        write_rollouts(path, results[benchmark.name].samples)
    tables = [summary_table(str(settings["model"]), results, show_paper), details_table(results)]
    lines = [f"{b.name}: the first {len(b.problems)} of {b.total} problems." for b in benchmarks if len(b.problems) < b.total]
    lines += [
        f"{name}: one problem, so its ± 0 and its interval do not measure uncertainty."
        for name, result in results.items()
        if result.problems == 1
    ]
    lines += notes(list(results), show_paper)
    report = {
        **settings,
        "reward": config.reward.model_dump(mode="json"),
        "results": {name: result.figures() for name, result in results.items()},
        "average": average(results),
        "notes": lines,
    }
    write_whole(store.folder / "results.json", json.dumps(report, indent=1) + "\n")
    text = "\n".join(
        [
            f"Pass@1 ± standard error; temperature {settings['temperature']}, top_p {settings['top_p']}, at most "
            f"{settings['max_new_tokens']} tokens.\n",
            *(table.markdown() for table in tables),
            *lines,
        ]
    )
    write_whole(store.folder / "results.md", f"# {settings['model']}\n\n{text}\n")
    write_whole(store.folder / "results.tex", "\n".join(table.latex() for table in tables))
    return f"{text}\nfiles in {store.folder}: results.json, results.md, results.tex, samples/, generations/"
