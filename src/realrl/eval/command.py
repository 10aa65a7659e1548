"""`realrl eval`: one model, one data set, k samples of each problem."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from realrl.config import Config, load_config, parse_config
from realrl.data import load_problems, render_prompts
from realrl.errors import DataError
from realrl.eval.runner import evaluate
from realrl.logging import write_rollouts
from realrl.models import load_model, load_tokenizer
from realrl.rewards import build_verifier
from realrl.sampling import HFSampler, SamplingParams
from realrl.seeding import generator


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What the command line asks for; `recipe` lends its data and reward sections."""

    model: str
    data: str
    samples: int
    problems: int
    temperature: float | None
    top_p: float
    max_new_tokens: int | None
    reward: str
    recipe: str | None
    seed: int
    output: str | None


def run_eval(request: EvalRequest) -> str:
    """Evaluate and return the result as one line of text.

    Raises ConfigError for a model that cannot be loaded, DataError for a data set without a usable problem.
    """
    config = _recipe(request)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(request.model)
    loaded = load_problems(
        request.data,
        columns=config.data.columns,
        seed=request.seed,
        task_options=config.data.task,
        count=request.problems,
        split="eval",
    )
    chosen = [loaded.problems[i] for i in range(min(request.problems, len(loaded.problems)))]
    rendered = render_prompts(chosen, tokenizer, config.data)
    if not rendered.prompts:
        raise DataError(f"{request.data}: no problem fits data.max_prompt_tokens = {config.data.max_prompt_tokens}")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(request.model, dtype=dtype, device=device).eval()
    params = SamplingParams(
        temperature=config.sampling.temperature if request.temperature is None else request.temperature,
        top_p=request.top_p,
        top_k=0,
        max_new_tokens=request.max_new_tokens or config.sampling.max_new_tokens,
        batch_rows=config.sampling.batch_rows,
    )
    with build_verifier(config.reward) as grader:
        result = evaluate(
            HFSampler(model, tokenizer),
            rendered.prompts,
            grader,
            samples=request.samples,
            params=params,
            generator=generator(request.seed, "eval", request.data, device=device),
        )
    if request.output:
        write_rollouts(Path(request.output), result.samples)
    return (
        f"{request.data}: accuracy {result.accuracy:.4f} ± {result.standard_error:.4f} (standard error over "
        f"{len(rendered.prompts)} problems, {request.samples} samples each, temperature {params.temperature}); "
        f"no answer {result.no_answer_share:.3f}, truncated {result.truncated_share:.3f}, "
        f"mean length {result.mean_length:.1f} tokens"
        + (f"; {rendered.too_long} problems were too long and left out" if rendered.too_long else "")
        + (f"; {loaded.bad_rows} bad rows were left out" if loaded.bad_rows else "")
    )


def _recipe(request: EvalRequest) -> Config:
    if request.recipe:
        return load_config(request.recipe)
    return parse_config(
        {
            "model": {"path": request.model},
            "data": {"train": request.data},
            "reward": {"type": request.reward},
            "sampling": {"temperature": 0.6},
        }
    )
