"""Every architecture of transformers: exact, refused by name, or wrong.

    python benchmarks/architectures.py [--only NAME]... [--jobs 2] [--json FILE]

For each tiny model of `zoo.py`: realrl loads it from a folder as its set-up does, and is held against plain transformers, one
unpadded row at a time in eval mode without a cache, log-softmax in float64, autograd.

logprobs   of responses, in the layout that realrl picks and in "padded", of a batch of ragged groups and of single rows
gradient   of Σ w · log π, whole and as single rows, with and without checkpointing; LoRA on the head
sampling   what the sampler says of its own draws; its greedy draws
resume     one optimizer step, saved and loaded again

A part is exact (largest difference in nats; the gradient's relative error), refused (a RealrlError, with its message), or
WRONG, any other exception included. A model of which no single row can be computed plainly, or whose tokens see later ones,
has to be refused. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers import logging as transformers_logging
from zoo import END, FAMILIES, VOCABULARY, build

from realrl.config import Config, parse_config
from realrl.errors import RealrlError
from realrl.logprobs import layout_of, response_logprobs
from realrl.models.resolve import load_tokenizer
from realrl.sampling import build_sampler
from realrl.sampling.base import SamplingParams
from realrl.train.batching import select_rows
from realrl.train.checkpoint import load_optimizer, save_checkpoint
from realrl.train.distributed import World
from realrl.train.optim import build_optimizer
from realrl.train.setup import load_policy
from realrl.types import Batch, Problem, Prompt

PARTS = ("logprobs", "gradient", "checkpointing", "LoRA on head", "sampling", "resume")
TEMPERATURE, NEW_TOKENS = 0.8, 16
# Prompts of one batch begin alike; rows are longer than every window of the zoo.
PROMPTS, RESPONSES, GROUPS = (5, 21, 12), (9, 1, 17, 3, 13), (0, 0, 1, 2, 2)
# Tokens of the longest row that a recipe for them allows.
LONGEST = max(PROMPTS) + max(NEW_TOKENS, *RESPONSES)
# float32 over a few layers of a sharp model: nats of a token, and the share of the gradient's norm.
NATS, SHARE = 2e-4, 1e-3


def make_batch() -> Batch:
    """Five responses to three prompts, ragged."""
    draw = torch.Generator().manual_seed(7)
    ids = [[5, 9, *torch.randint(3, VOCABULARY, (length - 2,), generator=draw).tolist()] for length in PROMPTS]
    loss_mask = torch.arange(max(RESPONSES)) < torch.tensor(RESPONSES)[:, None]
    groups = torch.tensor(GROUPS)
    return Batch(
        prompts=[Prompt(Problem(str(group), "", ""), "", tuple(prompt)) for group, prompt in enumerate(ids)],
        response_ids=torch.randint(3, VOCABULARY, loss_mask.shape, generator=draw) * loss_mask,
        loss_mask=loss_mask,
        group_ids=groups,
        rewards=torch.zeros(len(RESPONSES)),
        levels=groups * 0,
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )


BATCH = make_batch()
WEIGHTS = torch.randn(BATCH.loss_mask.shape, generator=torch.Generator().manual_seed(8)) * BATCH.loss_mask


# ---- the reference: plain transformers


def plain_row(model: PreTrainedModel, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """Log-probabilities (T, V) in float64 at each token of the response.

    Where rotary embeddings depend on the length of the call, realrl takes those of the longest row of a run for all. The
    reference gets them from transformers by as many more tokens at the end, which a causal model does not look at.
    """
    rope = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    more = LONGEST - len(prompt + response) if "longrope" in rope or "dynamic" in rope else 0
    ids = torch.tensor([prompt + response + [END] * more])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : len(prompt + response) - 1]
    return (logits.double() / temperature).log_softmax(dim=-1)


def rows_of(batch: Batch) -> Iterator[tuple[int, list[int], list[int]]]:
    """Each row's index, prompt and response."""
    for row, length in enumerate(batch.loss_mask.sum(dim=1).tolist()):
        yield row, list(batch.prompts[int(batch.group_ids[row])].token_ids), batch.response_ids[row, :length].tolist()


def plain_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(N, T), with gradient; 0 on padding."""
    out = []
    for _, prompt, response in rows_of(batch):
        own = plain_row(model, prompt, response, TEMPERATURE).gather(1, torch.tensor(response)[:, None])[:, 0]
        out.append(torch.nn.functional.pad(own, (0, batch.loss_mask.shape[1] - len(response))))
    return torch.stack(out)


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether no logit changes with the tokens after it."""
    _, prompt, response = max(rows_of(BATCH), key=lambda row: len(row[1]))
    ids = prompt + response
    other = ids[:-8] + [(token + 1) % (VOCABULARY - 3) + 3 for token in ids[-8:]]
    one, two = (model(input_ids=torch.tensor([row]), use_cache=False).logits[0, : len(ids) - 8] for row in (ids, other))
    return bool((one - two).abs().max() < 1e-3)


def gradient_of(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


# ---- realrl as its set-up puts it together


class Subject:
    """A folder with a model, and realrl's own ways to load it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, checkpointing: bool = False, attention: str = "auto", targets: tuple[str, ...] = ()) -> Config:
        model: dict[str, Any] = {"path": str(self.folder / "model"), "device": "cpu", "dtype": "float32"}
        model |= {"gradient_checkpointing": checkpointing, "attention": attention}
        if targets:
            model["lora"] = {"rank": 4, "alpha": 8, "targets": targets}
        recipe = {
            "run": {"dir": str(self.folder / "run")},
            "model": model,
            "data": {"train": "column_addition", "max_prompt_tokens": max(PROMPTS)},
            "sampling": {"max_new_tokens": LONGEST - max(PROMPTS), "temperature": TEMPERATURE},
            "optim": {"lr": 1e-2},
            "objective": {"type": "real"},
        }
        return parse_config(recipe)

    def load(self, config: Config, weights: str | None = None) -> PreTrainedModel:
        """As `realrl.train.setup.prepare` does."""
        model = load_policy(config, torch.device("cpu"), weights)
        layout_of(model, longest=LONGEST)
        return model

    def plain(self, path: Path | None = None, attention: str | None = None) -> PreTrainedModel:
        folder = path or self.folder / "model"
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


# ---- what is compared


class Worst:
    """The largest error of a part, and where it was above `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.error: float | None = None
        self.wrong: list[str] = []

    def see(self, error: float | Tensor, what: str) -> None:
        error = float(error)
        self.error = max(self.error or 0.0, error)
        if not error <= self.limit:  # NaN, too
            self.wrong.append(f"{what}: off by {error:.2g}")

    def say(self) -> str:
        """The first two places, and how many more there are."""
        more = [f"{len(self.wrong) - 2} more"] if len(self.wrong) > 2 else []
        return "; ".join([*self.wrong[:2], *more])


def check_logprobs(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    # Eager attention, too, where it is not what the model takes by itself: some models compute something else with it.
    kinds = {"auto": plain}
    if plain.config.get_text_config()._attn_implementation != "eager":
        kinds["eager"] = subject.plain(attention="eager")
    for kind, reference in kinds.items():
        model = subject.load(subject.config(attention=kind))
        with torch.no_grad():
            wanted = plain_logprobs(reference, BATCH)
            for layout in dict.fromkeys((layout_of(model, longest=LONGEST), "padded")):
                where = f"{kind} attention, {layout}"
                got = response_logprobs(model, BATCH, temperature=TEMPERATURE, layout=layout).logprobs
                again = response_logprobs(model, BATCH, temperature=TEMPERATURE, layout=layout).logprobs
                worst.see((got - again).abs().max(), f"a second pass, {where}")
                worst.see((got - wanted).abs().max(), f"batch, {where}")
                for row in range(len(BATCH)):
                    part = select_rows(BATCH, torch.tensor([row]))
                    got = response_logprobs(model, part, temperature=TEMPERATURE, layout=layout).logprobs
                    worst.see((got - wanted[row : row + 1, : got.shape[1]]).abs().max(), f"row {row} alone, {where}")


def see_gradients(worst: Worst, model: PreTrainedModel, wanted: dict[str, Tensor], what: str) -> None:
    """Of the whole batch, and summed over its rows."""
    norm = torch.stack([grad.norm() for grad in wanted.values()]).norm()
    for name, parts in {"batch": [range(len(BATCH))], "single rows": [[row] for row in range(len(BATCH))]}.items():
        loss = torch.zeros(())
        for rows in parts:
            part = select_rows(BATCH, torch.tensor(list(rows)))
            got = response_logprobs(model, part, temperature=TEMPERATURE).logprobs
            loss = loss + (WEIGHTS[list(rows), : got.shape[1]] * got).sum()
        got = gradient_of(model, loss)
        off = [got.get(key, torch.zeros(())) - wanted.get(key, torch.zeros(())) for key in got | wanted]
        worst.see(torch.stack([one.norm() for one in off]).norm() / norm, f"gradient of {what}{name}")


def check_gradient(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    wanted = gradient_of(plain, (WEIGHTS * plain_logprobs(plain, BATCH)).sum())
    see_gradients(worst, subject.load(subject.config()), wanted, "")


def check_checkpointing(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    wanted = gradient_of(plain, (WEIGHTS * plain_logprobs(plain, BATCH)).sum())
    see_gradients(worst, subject.load(subject.config(checkpointing=True)), wanted, "")


def check_lora(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    """LoRA on the head alone: the reference has W + 2 B A in a head of its own, and the chain rule written out.

    Nothing is tried where the head is no linear layer.
    """
    head: Any = plain.get_output_embeddings()
    name = next((name for name, module in plain.named_modules() if module is head), None)
    if not isinstance(head, torch.nn.Linear) or name is None:
        return
    own = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
    for checkpointing in (False, True):
        model = subject.load(subject.config(checkpointing=checkpointing, targets=(name,)))
        layer: Any = model.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.no_grad():
            b.copy_(0.3 * torch.randn(b.shape, generator=torch.Generator().manual_seed(9)))
            own.weight.copy_(head.weight + 2 * b @ a)
            if head.bias is not None:
                own.bias.copy_(head.bias)
        plain.set_submodule(name, own)
        try:
            values = plain_logprobs(plain, BATCH)
            by_weight = gradient_of(plain, (WEIGHTS * values).sum())[f"{name}.weight"]
        finally:
            plain.set_submodule(name, head)
        got = response_logprobs(model, BATCH, temperature=TEMPERATURE).logprobs
        how = "checkpointing, " if checkpointing else ""
        worst.see((got - values).abs().max(), f"log-probabilities, {how}batch")
        alone = response_logprobs(model, select_rows(BATCH, torch.tensor([0])), temperature=TEMPERATURE).logprobs
        worst.see((alone - values[:1, : alone.shape[1]]).abs().max(), f"log-probabilities, {how}one row alone")
        wanted = {f"{name}.lora_A.default.weight": 2 * b.detach().double().T @ by_weight}
        wanted[f"{name}.lora_B.default.weight"] = 2 * by_weight @ a.detach().double().T
        see_gradients(worst, model, wanted, how)


def check_sampling(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    config = subject.config()
    model = subject.load(config)
    tokenizer = load_tokenizer(config.model.path)
    sampler = build_sampler(config, model, tokenizer, longest_prompt=max(PROMPTS))
    prompts = [list(prompt.token_ids) for prompt in BATCH.prompts]
    for temperature, size in ((TEMPERATURE, 2), (0.0, 1)):
        params = SamplingParams(temperature=temperature, max_new_tokens=NEW_TOKENS, batch_rows=4)
        seeds = list(range(size * len(prompts)))
        for rollout in sampler.sample(prompts, group_size=size, params=params, seeds=seeds):
            drawn = list(rollout.token_ids)
            if END in drawn[:-1]:
                worst.wrong.append("a response goes on after the model's end token")
            with torch.no_grad():
                logprobs = plain_row(plain, prompts[rollout.prompt_index], drawn, temperature or 1.0)
            own = logprobs.gather(1, torch.tensor(drawn)[:, None])[:, 0]
            worst.see((own - torch.tensor(rollout.logprobs_sampler)).abs().max(), "the sampler's log-probabilities")
            if temperature == 0:
                worst.see((logprobs.amax(dim=1) - own).max(), "a greedy draw below the most likely token")


def check_resume(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    config = subject.config()
    model = subject.load(config)
    optimizer = build_optimizer(config.optim, model)
    (WEIGHTS * response_logprobs(model, BATCH, temperature=TEMPERATURE).logprobs).sum().backward()
    optimizer.step()
    with torch.no_grad():
        start = plain_logprobs(plain, BATCH)
        trained = response_logprobs(model, BATCH, temperature=TEMPERATURE).logprobs
    if not (trained - start).abs().max() > 1e-2:
        worst.wrong.append("a training step changed nothing")
    tokenizer = load_tokenizer(config.model.path)
    saved = save_checkpoint(subject.folder / "checkpoints", 1, model, tokenizer, optimizer, {}, 1, World())
    loaded = subject.load(config, str(saved))
    load_optimizer(saved, loaded, build_optimizer(config.optim, loaded))
    with torch.no_grad():
        worst.see((response_logprobs(loaded, BATCH, temperature=TEMPERATURE).logprobs - trained).abs().max(), "after loading")
        worst.see((plain_logprobs(subject.plain(saved), BATCH) - trained).abs().max(), "transformers, after loading")


CHECKS: dict[str, tuple[Callable[[Subject, Worst, PreTrainedModel], None], float]] = {
    "logprobs": (check_logprobs, NATS),
    "gradient": (check_gradient, SHARE),
    "checkpointing": (check_checkpointing, SHARE),
    "LoRA on head": (check_lora, SHARE),
    "sampling": (check_sampling, NATS),
    "resume": (check_resume, NATS),
}


# ---- a family's verdict


def load_and_use(subject: Subject) -> None:
    """What must not go through where plain transformers gives nothing to compare with."""
    response_logprobs(subject.load(subject.config()), BATCH, temperature=TEMPERATURE)


def stub_tokenizer() -> PreTrainedTokenizerFast:
    """As many words as the models have tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    # Its end token is not the model's, so that the model's own has to be found.
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="t0", eos_token="t2")


def judge(check: Callable[[], None], worst: Worst) -> dict[str, Any]:
    """`status` exact, refused or WRONG; `error`; `message`. A wrong number before a refusal stays wrong."""
    refused = ""
    try:
        check()
    except RealrlError as error:
        refused = " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  a traceback is what a user would see
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "/realrl/" in frame.filename), frames[-1])
        text = " ".join(str(error).split())[:160]
        worst.wrong.insert(0, f"{type(error).__name__} ({Path(frame.filename).name}:{frame.lineno}): {text}")
    if worst.wrong:
        return {"status": "WRONG", "error": worst.error, "message": worst.say()}
    return {"status": "refused" if refused else "exact", "error": worst.error, "message": refused}


def examine(name: str) -> dict[str, Any]:
    """All parts of one family, and its verdict."""
    quiet()
    start = time.perf_counter()
    family = FAMILIES[name]
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = Subject(Path(folder))
        plain: Any = None
        try:
            build(family).save_pretrained(subject.folder / "model")
            stub_tokenizer().save_pretrained(subject.folder / "model")
            plain = subject.plain()
            with torch.no_grad():
                finite = bool(plain_logprobs(plain, BATCH).isfinite().all())
            why = "transformers' own numbers are not finite" if not finite else ""
            why = why or ("" if is_causal(plain) else "its tokens see later ones")
        except Exception as error:  # noqa: BLE001
            why = f"transformers itself: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        for part, (check, limit) in CHECKS.items():
            worst = Worst(limit)
            if why:
                parts[part] = judge(lambda: load_and_use(subject), worst)
                if parts[part]["status"] == "exact":
                    parts[part] = {"status": "WRONG", "error": None, "message": f"accepted, but {why}"}
                break
            parts[part] = judge(lambda check=check, worst=worst: check(subject, worst, plain), worst)
    for part in parts.values():
        part["message"] = part["message"].replace(folder, "FOLDER")
    statuses = [part["status"] for part in parts.values()]
    verdict = "WRONG" if "WRONG" in statuses else "refused" if parts["logprobs"]["status"] == "refused" else "exact"
    return {"name": name, "verdict": verdict, "parts": parts, "seconds": round(time.perf_counter() - start, 1)}


def quiet() -> None:
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


# ---- the table


def cell(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    return part["status"] if part["status"] != "exact" else "–" if part["error"] is None else f"{part['error']:.0e}"


def row_of(result: dict[str, Any]) -> str:
    said: dict[str, list[str]] = {}
    for name, part in result["parts"].items():
        if part["message"]:
            said.setdefault(part["message"], []).append(name)
    notes = "; ".join(f"{', '.join(names)}: {message}" for message, names in said.items()).replace("|", "\\|")
    cells = " | ".join(cell(result["parts"].get(part)) for part in PARTS)
    return f"| {result['name']} | {result['verdict']} | {cells} | {result['seconds']} | {notes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this family alone; may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here, too")
    arguments = parser.parse_args()
    names = arguments.only or list(FAMILIES)
    if unknown := [name for name in names if name not in FAMILIES]:
        sys.exit(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    start = time.perf_counter()
    print(f"| family | verdict | {' | '.join(PARTS)} | s | notes |\n|{' --- |' * (len(PARTS) + 4)}")
    results = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for result in pool.map(examine, names):
            print(row_of(result), flush=True)
            results.append(result)
    counts = {verdict: sum(result["verdict"] == verdict for result in results) for verdict in ("exact", "refused", "WRONG")}
    print(f"\n{len(results)} models: {counts}; {time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"counts": counts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
