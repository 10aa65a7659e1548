"""TRL's GRPOTrainer beside realrl on equal work: sampling, forward, backward, whole step and peak memory, in one run.

    python benchmarks/vs_trl.py [--cases a,b,c,d] [--repeats 5] [--threads 1] [--steps N] [--trl-python PATH]

Each side runs in processes of its own, in turns, TRL's with its own interpreter (`make bench-trl` makes one). Both load one
saved model in float32, sample 8 prompts × 8 rollouts at temperature 1 with their own samplers, and take one AdamW step on
all of them; no reference model, no gradient checkpointing, every group half right. TRL takes its defaults, micro-
batches of 8 rollouts among them (`--trl-rows`; with more its head's tiles grow, and its peak memory with them). Cases:

    a  Qwen2, hidden 128, 4 layers, vocabulary 512; prompts of 32 tokens, responses of 64
    b  the same with vocabulary 151,936
    c  as a, with response lengths log-normal from 32 to 256
    d  the quick start's SmolLM2-135M on its own prompts, response lengths as the model itself drew them once

Lengths are equal row by row: just before each token is drawn, the end token's logit is set so that it cannot come before
the row's length and must come there. The rest is each side's own sampler. The run stops with an error where a side sampled
or trained on anything else. A whole step is sampling, log-probabilities, loss, backward, clipping and the optimizer's step;
`step_cpu` is its CPU time. Prints JSON; ratios are TRL / realrl.
"""

import argparse
import functools
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import cpu_model, versions

GROUPS, GROUP_SIZE = 8, 8
ROWS = GROUPS * GROUP_SIZE
LEARNING_RATE, MAX_GRAD_NORM, SEED = 1e-6, 1.0, 0
PARTS = ("sampling", "forward", "backward", "step", "step_cpu")
# Timed steps of one process, after one that warms up.
STEPS = {"a": 3, "b": 1, "c": 2, "d": 1}
# Ours: train.micro_batch_tokens. Where memory is the question, a group at a time, which is less than TRL's 8 padded rows.
BUDGETS = {"a": 2048, "b": 1024, "c": 2048, "d": 2048}
ROOT = Path(__file__).resolve().parents[1]
# The highest score that any row's end token can need; its opposite forbids it.
FORCE = 1e9


def lognormal_lengths(shortest: int, longest: int) -> list[int]:
    """The 64 mid-quantiles of a log-normal distribution, scaled to these ends, in a random order."""
    normal = statistics.NormalDist()
    places = [normal.inv_cdf((row + 0.5) / ROWS) for row in range(ROWS)]
    middle, width = math.log(shortest * longest) / 2, math.log(longest / shortest) / (places[-1] - places[0])
    lengths = [round(math.exp(middle + width * place)) for place in places]
    random.Random(SEED).shuffle(lengths)
    return lengths


def prepare(case: str, folder: Path) -> None:
    """Write `plan.json`, and for a made-up model its weights and tokenizer, into `folder`; with this project's interpreter."""
    if case == "d":
        plan = _plan_of_quickstart()
    else:
        vocabulary = 151_936 if case == "b" else 512
        _save_small_qwen2(folder, vocabulary)
        rng = random.Random(SEED)
        prompts = [[rng.randrange(3, 512) for _ in range(32)] for _ in range(GROUPS)]
        plan = {
            "model": str(folder),
            "tokenizer": str(folder / "tokenizer"),
            "prompt_ids": prompts,
            "prompt_texts": [" ".join(f"t{token}" for token in prompt) for prompt in prompts],
            "lengths": lognormal_lengths(32, 256) if case == "c" else [64] * ROWS,
            "limit": 256 if case == "c" else 64,
            "end_id": 2,
        }
    (folder / "plan.json").write_text(json.dumps(plan))


def _save_small_qwen2(folder: Path, vocabulary: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=vocabulary,
            max_position_embeddings=1024,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    # The tokenizer names the first 512 tokens only: prompts hold no others, and names of the others would only take memory.
    names = ["<pad>", "<bos>", "<eos>", *(f"t{token}" for token in range(3, 512))]
    core = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A folder of its own: beside a Qwen2 config, transformers would load it as Qwen2's byte-level tokenizer.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder / "tokenizer")


def _plan_of_quickstart() -> dict:
    import torch

    from realrl.config import load_config
    from realrl.data import render_prompts, training_problems
    from realrl.models import load_model, load_tokenizer, resolve_model
    from realrl.sampling import HFSampler, SamplingParams
    from realrl.seeding import derive_seed

    config = load_config(ROOT / "recipes" / "quickstart.toml")
    tokenizer = load_tokenizer(config.model.path)
    problems, _ = training_problems(config.data, config.run.seed)
    prompts = render_prompts([problems[index] for index in range(GROUPS)], tokenizer, config.data).prompts
    model = load_model(config.model.path, dtype=torch.float32)
    limit = config.sampling.max_new_tokens
    rollouts = HFSampler(model, tokenizer).sample(
        [prompt.token_ids for prompt in prompts],
        group_size=GROUP_SIZE,
        params=SamplingParams(temperature=1.0, max_new_tokens=limit),
        seeds=[derive_seed(SEED, "lengths", row) for row in range(ROWS)],
    )
    return {
        "model": resolve_model(config.model.path),
        "tokenizer": resolve_model(config.model.path),
        "prompt_ids": [list(prompt.token_ids) for prompt in prompts],
        "prompt_texts": [prompt.text for prompt in prompts],
        "lengths": [len(rollout.token_ids) for rollout in rollouts],
        "limit": limit,
        "end_id": tokenizer.eos_token_id,
    }


def force_in_trl(model, lengths: list[int], limit: int, end_id: int) -> None:
    """Make `model.generate` end each row at its length, or at the limit without an end token; its rows keep their order."""
    step = 0

    def hook(module, args, kwargs, output) -> None:
        import torch

        nonlocal step
        # transformers 5.24 calls the cache `cache`, earlier ones `past_key_values`.
        if torch.is_grad_enabled() or kwargs.get("cache", kwargs.get("past_key_values")) is None:
            return
        step = 0 if kwargs["input_ids"].shape[1] > 1 else step + 1
        logits = output.logits[:, -1]
        logits[:, end_id] = -FORCE
        ending = [row for row, length in enumerate(lengths) if length == step + 1 < limit]
        if ending:
            logits[ending, end_id] = FORCE

    model.register_forward_hook(hook, with_kwargs=True)


class ForceInOurs:
    """Makes HFSampler end each rollout at its length, or at the limit without an end token.

    Its rows come and go, but each draw has a uniform number of the rollout's own seed: the one at a rollout's last token
    tells where to end.
    """

    def __init__(self, lengths: list[int], limit: int, end_id: int) -> None:
        import torch

        from realrl.sampling import hf

        self.lengths, self.limit = lengths, limit
        self._at_end = torch.empty(0)
        plain_draw = hf.draw

        def draw(logits, uniforms, params):
            logits[:, end_id] = -FORCE
            logits[torch.isin(uniforms, self._at_end), end_id] = FORCE
            return plain_draw(logits, uniforms, params)

        hf.draw = draw

    def seeds(self, step: int) -> list[int]:
        """The seeds of the next 64 rollouts; none of their draws before the last has the number of another one's last."""
        import torch

        from realrl.seeding import derive_seed

        last = torch.tensor(self.lengths)[:, None] - 1
        for attempt in range(100):
            seeds = [derive_seed(SEED, "sampling", step, attempt, row) for row in range(ROWS)]
            uniforms = torch.stack([torch.rand(self.limit, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
            self._at_end = uniforms.gather(1, last)[last < self.limit - 1]
            earlier = uniforms[torch.arange(self.limit) < last]
            if not bool(torch.isin(earlier, self._at_end).any()):
                return seeds
        raise RuntimeError("no seeds without two equal draws")


class Stopwatch:
    """Seconds of the parts of a step, and CPU seconds of the whole, which other work on the machine hardly changes."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._parts: dict[str, float] = {}
        self._started = 0.0, 0.0

    def start(self) -> None:
        """A step begins."""
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """The step is done."""
        wall, cpu = self._started
        self.steps.append({**self._parts, "step": time.perf_counter() - wall, "step_cpu": time.process_time() - cpu})

    def timed(self, part: str, function):
        """`function`, its seconds added to `part`."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._parts[part] += time.perf_counter() - started

        return wrapper


def check_work(plan: dict, prompt_ids: list[list[int]], lengths: list[int], trained_tokens: int) -> None:
    """RuntimeError where a side did other work than the plan's."""
    expected = [prompt for prompt in plan["prompt_ids"] for _ in range(GROUP_SIZE)]
    if prompt_ids != expected:
        raise RuntimeError("a side saw other prompts than the plan's")
    if lengths != plan["lengths"] or trained_tokens != sum(plan["lengths"]):
        raise RuntimeError(
            f"a side sampled lengths {lengths} and trained on {trained_tokens} tokens; planned {plan['lengths']}"
        )


def work_ours(plan: dict, steps: int) -> list[dict[str, float]]:
    """One warm-up and `steps` timed steps of realrl."""
    import torch
    from transformers import AutoTokenizer

    from realrl.config import OptimSection
    from realrl.models import load_model
    from realrl.objectives import build_objective
    from realrl.sampling import HFSampler, SamplingParams
    from realrl.system.memory import keep_freed_memory, return_freed_memory
    from realrl.training.batching import make_batch
    from realrl.training.gradient import GradientSettings, MiniBatchGradient
    from realrl.training.optim import build_optimizer
    from realrl.types import Problem, Prompt, Verdict

    # As `realrl train` does at its start, and after sampling.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(plan["tokenizer"])
    model = load_model(plan["model"], dtype=torch.float32)
    model.train()
    force = ForceInOurs(plan["lengths"], plan["limit"], plan["end_id"])
    sampler = HFSampler(model, tokenizer)
    objective = build_objective({"type": plan["objective"]})
    optimizer = build_optimizer(OptimSection(lr=LEARNING_RATE, weight_decay=0.0), model)
    gradient = MiniBatchGradient(model, objective, GradientSettings(temperature=1.0, budget=plan["budget"]))
    params = SamplingParams(temperature=1.0, max_new_tokens=plan["limit"])
    prompts = [Prompt(Problem(str(group), "", ""), "", tuple(ids)) for group, ids in enumerate(plan["prompt_ids"])]
    verdicts = [Verdict("correct" if row % 2 else "wrong") for row in range(ROWS)]
    watch = Stopwatch()
    torch.Tensor.backward = watch.timed("backward", torch.Tensor.backward)
    sample, both = watch.timed("sampling", sampler.sample), watch.timed("forward", gradient.backward)
    for step in range(steps + 1):
        seeds = force.seeds(step)
        watch.start()
        rollouts = sample([prompt.token_ids for prompt in prompts], group_size=GROUP_SIZE, params=params, seeds=seeds)
        return_freed_memory()
        batch = make_batch(prompts, rollouts, verdicts, torch.device("cpu"))
        optimizer.zero_grad(set_to_none=True)
        report = both(batch, None, None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sampler.update_weights(model)
        watch.stop()
        check_work(
            plan,
            [list(prompts[rollout.prompt_index].token_ids) for rollout in rollouts],
            [len(rollout.token_ids) for rollout in rollouts],
            int(batch.loss_mask[report.computed_N].sum()),
        )
    for part in watch.steps:
        part["forward"] -= part["backward"]
    return watch.steps[1:]


def work_trl(plan: dict, steps: int) -> list[dict[str, float]]:
    """One warm-up and `steps` timed steps of TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]  of the other environment

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(plan["tokenizer"])
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    force_in_trl(model, plan["lengths"], plan["limit"], plan["end_id"])
    watch = Stopwatch()
    seen: dict = {}

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen["trained"] = 0
            watch.start()

        def on_step_end(self, args, state, control, **kwargs):
            watch.stop()
            check_work(plan, seen["prompt_ids"], seen["lengths"], seen["trained"])

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=plan["trl_rows"],
            gradient_accumulation_steps=ROWS // plan["trl_rows"],
            num_generations=GROUP_SIZE,
            max_completion_length=plan["limit"],
            max_steps=steps + 1,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
            temperature=1.0,
            seed=SEED,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **kwargs: [float(row % 2) for row in range(len(completions))],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in plan["prompt_texts"]]),
            processing_class=tokenizer,
            callbacks=[Steps()],
        )
        generate, compute_loss = watch.timed("sampling", trainer._generate), watch.timed("forward", trainer.compute_loss)

        def watched_generate(prompts):
            out = generate(prompts)
            seen["prompt_ids"] = [list(ids) for ids in out[0]]
            seen["lengths"] = [len(ids) for ids in out[1]]
            return out

        def watched_loss(model, inputs, *args, **kwargs):
            seen["trained"] += int(inputs["completion_mask"].sum())
            return compute_loss(model, inputs, *args, **kwargs)

        trainer._generate, trainer.compute_loss = watched_generate, watched_loss
        trainer.accelerator.backward = watch.timed("backward", trainer.accelerator.backward)
        trainer.train()
    return watch.steps[1:]


def work(side: str, plan: dict, steps: int, threads: int) -> dict:
    """Medians over the timed steps of one process, its peak memory, and the versions that it ran."""
    import torch

    torch.set_num_threads(threads)
    timed = (work_ours if side == "ours" else work_trl)(plan, steps)
    names = ["torch", "transformers", *([] if side == "ours" else ["trl", "accelerate"])]
    return {
        **{part: statistics.median(one[part] for one in timed) for part in PARTS},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": versions(names),
    }


def run(command: list[str], threads: int) -> str:
    """Output of this file run in another process; its error is shown."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # What realrl's command line sets; the same for both sides.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def compare(case: str, arguments: argparse.Namespace) -> dict:
    """Both sides of a case in turns."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, __file__, "--prepare", case, folder], arguments.threads)
        place = Path(folder) / "plan.json"
        plan = json.loads(place.read_text()) | {
            "budget": arguments.budget or BUDGETS[case],
            "objective": arguments.objective,
            "trl_rows": arguments.trl_rows,
        }
        place.write_text(json.dumps(plan))
        steps = arguments.steps or STEPS[case]
        runs: dict[str, list[dict]] = {"ours": [], "trl": []}
        for repeat in range(arguments.repeats):
            for side, done in runs.items():
                python = sys.executable if side == "ours" else arguments.trl_python
                command = [python, __file__, "--one", side, str(place), "--threads", str(arguments.threads)]
                printed = run([*command, "--steps", str(steps)], arguments.threads)
                done.append(json.loads(printed.strip().splitlines()[-1]))
                print(f"case {case}, repeat {repeat + 1}, {side}: {done[-1]['step']:.2f} s a step", file=sys.stderr)
    median = {
        side: {key: statistics.median(one[key] for one in done) for key in (*PARTS, "peak_mib")} for side, done in runs.items()
    }
    return {
        "prompt_tokens": sum(len(prompt) for prompt in plan["prompt_ids"]),
        "response_tokens": sum(plan["lengths"]),
        "longest_response": max(plan["lengths"]),
        "budget": plan["budget"],
        "timed_steps_each": steps,
        **{side: {key: round(value, 4) for key, value in figures.items()} for side, figures in median.items()},
        "step_seconds_of_all_repeats": {side: [round(one["step"], 4) for one in done] for side, done in runs.items()},
        "versions": {side: done[0]["versions"] for side, done in runs.items()},
        "ratio": {key: round(median["trl"][key] / median["ours"][key], 2) for key in median["ours"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default="a,b,c,d")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="timed steps of a process; 0: the case's own")
    parser.add_argument("--budget", type=int, default=0, help="ours: train.micro_batch_tokens; 0: the case's own")
    parser.add_argument("--trl-rows", type=int, default=8, help="TRL's: per_device_train_batch_size, a divisor of 64")
    parser.add_argument("--objective", default="real", help="ours: objective.type")
    parser.add_argument("--trl-python", default=sys.executable, help="of another TRL")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare[0], Path(arguments.prepare[1]))
    elif arguments.one:
        side, place = arguments.one
        print(json.dumps(work(side, json.loads(Path(place).read_text()), arguments.steps, arguments.threads)))
    else:
        report = {
            "cpu": cpu_model(),
            "threads": arguments.threads,
            "repeats": arguments.repeats,
            "trl_rows": arguments.trl_rows,
            "objective": arguments.objective,
            "cases": {case: compare(case, arguments) for case in arguments.cases.split(",")},
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
