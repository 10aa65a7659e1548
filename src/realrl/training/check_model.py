"""Compare a model with plain transformers, part by part: exact, refused by name, or wrong.

The reference is transformers' own forward pass over one unpadded row at a time, in eval mode and without a cache, with
log-softmax in float64 and autograd.

logprobs       of responses in a batch of ragged groups and in single rows, in the chosen layout and in "padded"
gradient       of Σ w · log π, of the whole batch and summed over single rows
checkpointing  the gradient with gradient checkpointing
LoRA on head   values and gradient with an adapter on the head
sampling       the sampler's log-probabilities of what it drew, and its greedy choices
resume         one optimizer step, saved and loaded again
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from realrl.config import Config, parse_config
from realrl.errors import ConfigError, RealrlError
from realrl.models import load_tokenizer, resolve_model
from realrl.models.logprobs import layout_of, response_logprobs
from realrl.models.resolve import load_architecture
from realrl.sampling import SamplingParams, build_sampler
from realrl.training.batching import select_rows
from realrl.training.checkpoint import load_optimizer, save_checkpoint
from realrl.training.distributed import World
from realrl.training.optim import build_optimizer
from realrl.training.progress import Progress
from realrl.training.setup import load_policy
from realrl.types import Batch, Problem, Prompt

TEMPERATURE = 0.8
# Five responses to three prompts with the same start; the length of the second prompt makes the longest row.
_RESPONSES, _GROUPS, _NEW_TOKENS = (9, 1, 17, 3, 13), (0, 0, 1, 2, 2), 16
SHORTEST = 38
"""The smallest `longest` of a check."""
# Limits for float32 over a few layers of a sharp model: nats per token, and a share of the gradient's norm.
_NATS, _SHARE = 2e-4, 1e-3


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one part: the largest error (in nats, or as a share of a norm; None if nothing was compared), and why it
    is not exact."""

    status: Literal["exact", "refused", "WRONG"]
    error: float | None
    message: str


class Subject:
    """A model by path, loaded as a run loads it. `folder` is for a checkpoint; `longest` is the length of the longest row that
    is tried, in tokens. Raises ConfigError for a model that cannot be loaded."""

    def __init__(self, path: str, folder: Path, longest: int = SHORTEST, *, trust_remote_code: bool = False) -> None:
        if longest < SHORTEST:
            raise ConfigError(f"a check needs rows of at least {SHORTEST} tokens, got {longest}")
        self.path, self.folder, self.longest, self.trust = path, folder, longest, trust_remote_code
        vocabulary = load_architecture(path, trust_remote_code=trust_remote_code).get_text_config().vocab_size
        self.batch = _batch(vocabulary, longest)
        shape = self.batch.loss_mask.shape
        self.weights_NT = torch.randn(shape, generator=torch.Generator().manual_seed(8)) * self.batch.loss_mask

    def config(self, checkpointing: bool = False, attention: str = "auto", targets: tuple[str, ...] = ()) -> Config:
        """The recipe that a part runs under."""
        model: dict[str, Any] = {"path": self.path, "device": "cpu", "dtype": "float32", "trust_remote_code": self.trust}
        model |= {"gradient_checkpointing": checkpointing, "attention": attention}
        if targets:
            model["lora"] = {"rank": 4, "alpha": 8, "targets": targets}
        longest_prompt = max(len(prompt.token_ids) for prompt in self.batch.prompts)
        recipe = {
            "run": {"dir": str(self.folder / "run")},
            "model": model,
            "data": {"train": "column_addition", "max_prompt_tokens": longest_prompt},
            "sampling": {"max_new_tokens": self.longest - longest_prompt, "temperature": TEMPERATURE},
            "optim": {"lr": 1e-2},
            "objective": {"type": "real"},
        }
        return parse_config(recipe)

    def load(self, config: Config, weights: str | None = None) -> PreTrainedModel:
        """As a run does."""
        model = load_policy(config, torch.device("cpu"), weights)
        layout_of(model, longest=self.longest)
        return model

    def plain(self, path: Path | None = None, attention: str | None = None) -> PreTrainedModel:
        """The model as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(
            path or resolve_model(self.path),
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=self.trust,
        ).eval()

    def logprobs(self, model: PreTrainedModel, rows: Sequence[int] | None = None, **options: Any) -> Tensor:
        """Our log-probabilities of the batch, or of some of its rows."""
        part = self.batch if rows is None else select_rows(self.batch, torch.tensor(list(rows)))
        return response_logprobs(model, part, temperature=TEMPERATURE, **options).logprobs


def check_model(path: str, longest: int = SHORTEST, *, parts: Sequence[str] = (), trust_remote_code: bool = False):
    """Yields (part, Finding) for each of `parts`, by default all of `CHECKS`.

    `longest` is the length of the longest row in tokens. Raises ConfigError for a model that cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(path, Path(folder), longest, trust_remote_code=trust_remote_code)
        yield from findings(subject, parts or tuple(CHECKS))


def findings(subject: Subject, parts: Sequence[str]) -> Iterator[tuple[str, Finding]]:
    """The finding of each part. If transformers itself gives no usable reference, the model must be refused: one finding."""
    plain, why = _reference(subject)
    for part in parts:
        check, limit = CHECKS[part]
        worst = Worst(limit)
        if plain is None or why:
            found = _judge(lambda: _use(subject), worst)
            yield part, Finding("WRONG", None, f"accepted, but {why}") if found.status == "exact" else found
            return
        yield part, _judge(lambda check=check, worst=worst: check(subject, worst, plain), worst)


def _reference(subject: Subject) -> tuple[PreTrainedModel | None, str]:
    """The model as transformers loads it, and why it cannot be a reference; empty if it can."""
    try:
        plain = subject.plain()
        with torch.no_grad():
            if not bool(_plain_logprobs(subject, plain).isfinite().all()):
                return plain, "transformers' own numbers are not finite"
        return plain, "" if _is_causal(subject, plain) else "its tokens see later ones"
    except Exception as error:  # noqa: BLE001  a model of any architecture can raise anything
        return None, f"transformers itself: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _use(subject: Subject) -> None:
    subject.logprobs(subject.load(subject.config()))


def _batch(vocabulary: int, longest: int) -> Batch:
    """A ragged batch without the first three token ids, which often have a special meaning."""
    draw = torch.Generator().manual_seed(7)
    prompts = [
        [5, 9, *torch.randint(3, vocabulary, (length - 2,), generator=draw).tolist()]
        for length in (5, longest - max(_RESPONSES), 12)
    ]
    loss_mask = torch.arange(max(_RESPONSES)) < torch.tensor(_RESPONSES)[:, None]
    groups = torch.tensor(_GROUPS)
    return Batch(
        prompts=[Prompt(Problem(str(group), "", ""), "", tuple(prompt)) for group, prompt in enumerate(prompts)],
        response_ids=torch.randint(3, vocabulary, loss_mask.shape, generator=draw) * loss_mask,
        loss_mask=loss_mask,
        group_ids=groups,
        rewards=torch.zeros(len(_RESPONSES)),
        levels=groups * 0,
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )


def _plain_row(subject: Subject, model: PreTrainedModel, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """Log-probabilities (T, V) in float64 at each token of the response.

    If rotary embeddings depend on the length of the call, realrl uses those of the longest row of a run for all rows. To get
    the same from transformers, the row is filled up at its end, which a causal model does not look at.
    """
    rope = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    more = subject.longest - len(prompt + response) if "longrope" in rope or "dynamic" in rope else 0
    ids = torch.tensor([prompt + response + prompt[:1] * more])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : len(prompt + response) - 1]
    return (logits.double() / temperature).log_softmax(dim=-1)


def _rows_of(batch: Batch) -> Iterator[tuple[int, list[int], list[int]]]:
    """The index, prompt and response of each row."""
    for row, length in enumerate(batch.loss_mask.sum(dim=1).tolist()):
        yield row, list(batch.prompts[int(batch.group_ids[row])].token_ids), batch.response_ids[row, :length].tolist()


def _plain_logprobs(subject: Subject, model: PreTrainedModel) -> Tensor:
    """Log-probabilities (N, T) of the batch with gradient; 0 on padding."""
    out = []
    for _, prompt, response in _rows_of(subject.batch):
        own = _plain_row(subject, model, prompt, response, TEMPERATURE).gather(1, torch.tensor(response)[:, None])[:, 0]
        out.append(torch.nn.functional.pad(own, (0, subject.batch.loss_mask.shape[1] - len(response))))
    return torch.stack(out)


@torch.no_grad()
def _is_causal(subject: Subject, model: PreTrainedModel) -> bool:
    """Whether no logit depends on later tokens."""
    _, prompt, response = max(_rows_of(subject.batch), key=lambda row: len(row[1]))
    ids = prompt + response
    other = ids[:-8] + [prompt[2] if token != prompt[2] else prompt[3] for token in ids[-8:]]
    one, two = (model(input_ids=torch.tensor([row]), use_cache=False).logits[0, : len(ids) - 8] for row in (ids, other))
    return bool((one - two).abs().max() < 1e-3)


def _gradient_of(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Worst:
    """The largest error of a part, and the places where it exceeded `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.error: float | None = None
        self.wrong: list[str] = []

    def see(self, error: float | Tensor, what: str) -> None:
        error = float(torch.as_tensor(error).detach())
        self.error = max(self.error or 0.0, error)
        if not error <= self.limit:  # also NaN
            self.wrong.append(f"{what}: off by {error:.2g}")

    def say(self) -> str:
        """The first two places, and the number of others."""
        more = [f"{len(self.wrong) - 2} more"] if len(self.wrong) > 2 else []
        return "; ".join([*self.wrong[:2], *more])


def _check_logprobs(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    # Also with eager attention, if it is not the default: some models compute something else with it.
    kinds = {"auto": plain}
    if plain.config.get_text_config()._attn_implementation != "eager":
        kinds["eager"] = subject.plain(attention="eager")
    for kind, reference in kinds.items():
        model = subject.load(subject.config(attention=kind))
        with torch.no_grad():
            wanted = _plain_logprobs(subject, reference)
            for layout in dict.fromkeys((layout_of(model, longest=subject.longest), "padded")):
                where = f"{kind} attention, {layout}"
                got = subject.logprobs(model, layout=layout)
                again = subject.logprobs(model, layout=layout)
                worst.see((got - again).abs().max(), f"a second pass, {where}")
                worst.see((got - wanted).abs().max(), f"batch, {where}")
                for row in range(len(subject.batch)):
                    got = subject.logprobs(model, [row], layout=layout)
                    worst.see((got - wanted[row : row + 1, : got.shape[1]]).abs().max(), f"row {row} alone, {where}")


def _see_gradients(subject: Subject, worst: Worst, model: PreTrainedModel, wanted: dict[str, Tensor], what: str) -> None:
    """Compare the gradient of the whole batch, and its sum over single rows, with `wanted`."""
    norm = torch.stack([grad.norm() for grad in wanted.values()]).norm()
    rows = range(len(subject.batch))
    for name, parts in {"batch": [rows], "single rows": [[row] for row in rows]}.items():
        loss = torch.zeros(())
        for rows in parts:
            got = subject.logprobs(model, rows)
            loss = loss + (subject.weights_NT[list(rows), : got.shape[1]] * got).sum()
        got = _gradient_of(model, loss)
        off = [got.get(key, torch.zeros(())) - wanted.get(key, torch.zeros(())) for key in got | wanted]
        worst.see(torch.stack([one.norm() for one in off]).norm() / norm, f"gradient of {what}{name}")


def _check_gradient(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    wanted = _gradient_of(plain, (subject.weights_NT * _plain_logprobs(subject, plain)).sum())
    _see_gradients(subject, worst, subject.load(subject.config()), wanted, "")


def _check_checkpointing(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    wanted = _gradient_of(plain, (subject.weights_NT * _plain_logprobs(subject, plain)).sum())
    _see_gradients(subject, worst, subject.load(subject.config(checkpointing=True)), wanted, "")


def _check_lora(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    """LoRA on the head alone. The reference has a head of its own with W + 2 B A, and its gradients by the chain rule.

    A head that is not a linear layer is not tried.
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
            values = _plain_logprobs(subject, plain)
            by_weight = _gradient_of(plain, (subject.weights_NT * values).sum())[f"{name}.weight"]
        finally:
            plain.set_submodule(name, head)
        got = subject.logprobs(model)
        how = "checkpointing, " if checkpointing else ""
        worst.see((got - values).abs().max(), f"log-probabilities, {how}batch")
        alone = subject.logprobs(model, [0])
        worst.see((alone - values[:1, : alone.shape[1]]).abs().max(), f"log-probabilities, {how}one row alone")
        wanted = {f"{name}.lora_A.default.weight": 2 * b.detach().T @ by_weight}
        wanted[f"{name}.lora_B.default.weight"] = 2 * by_weight @ a.detach().T
        _see_gradients(subject, worst, model, wanted, how)


def _check_sampling(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    config = subject.config()
    model = subject.load(config)
    tokenizer = load_tokenizer(config.model.path)
    sampler = build_sampler(config, model, tokenizer, longest_prompt=config.data.max_prompt_tokens)
    prompts = [list(prompt.token_ids) for prompt in subject.batch.prompts]
    named = getattr(plain.config.get_text_config(), "eos_token_id", None)
    ends = set(named if isinstance(named, list) else [] if named is None else [named])
    for temperature, size in ((TEMPERATURE, 2), (0.0, 1)):
        params = SamplingParams(temperature=temperature, max_new_tokens=_NEW_TOKENS, batch_rows=4)
        seeds = list(range(size * len(prompts)))
        for rollout in sampler.sample(prompts, group_size=size, params=params, seeds=seeds):
            drawn = list(rollout.token_ids)
            if ends & set(drawn[:-1]):
                worst.wrong.append("a response goes on after the model's end token")
            with torch.no_grad():
                logprobs = _plain_row(subject, plain, prompts[rollout.prompt_index], drawn, temperature or 1.0)
            own = logprobs.gather(1, torch.tensor(drawn)[:, None])[:, 0]
            worst.see((own - torch.tensor(rollout.logprobs_sampler)).abs().max(), "the sampler's log-probabilities")
            if temperature == 0:
                worst.see((logprobs.amax(dim=1) - own).max(), "a greedy draw below the most likely token")


def _check_resume(subject: Subject, worst: Worst, plain: PreTrainedModel) -> None:
    config = subject.config()
    model = subject.load(config)
    optimizer = build_optimizer(config.optim, model)
    (subject.weights_NT * subject.logprobs(model)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        start = _plain_logprobs(subject, plain)
        trained = subject.logprobs(model)
    if not (trained - start).abs().max() > 1e-2:
        worst.wrong.append("a training step changed nothing")
    tokenizer = load_tokenizer(config.model.path)
    progress = Progress(seed=0, rounds=1)
    saved = save_checkpoint(subject.folder / "checkpoints", model, tokenizer, optimizer, progress, 1, World())
    loaded = subject.load(config, str(saved))
    load_optimizer(saved, loaded, build_optimizer(config.optim, loaded))
    with torch.no_grad():
        worst.see((subject.logprobs(loaded) - trained).abs().max(), "after loading")
        worst.see((_plain_logprobs(subject, subject.plain(saved)) - trained).abs().max(), "transformers, after loading")


def _judge(check: Callable[[], None], worst: Worst) -> Finding:
    """Run a check and judge it. A wrong number counts even if the check is refused after it."""
    refused = ""
    try:
        check()
    except RealrlError as error:
        refused = " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  anything else is a traceback for the user
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "/realrl/" in frame.filename), frames[-1])
        text = " ".join(str(error).split())[:160]
        worst.wrong.insert(0, f"{type(error).__name__} ({Path(frame.filename).name}:{frame.lineno}): {text}")
    if worst.wrong:
        return Finding("WRONG", worst.error, worst.say())
    return Finding("refused" if refused else "exact", worst.error, refused)


CHECKS: dict[str, tuple[Callable[[Subject, Worst, PreTrainedModel], None], float]] = {
    "logprobs": (_check_logprobs, _NATS),
    "gradient": (_check_gradient, _SHARE),
    "checkpointing": (_check_checkpointing, _SHARE),
    "LoRA on head": (_check_lora, _SHARE),
    "sampling": (_check_sampling, _NATS),
    "resume": (_check_resume, _NATS),
}
# Without adapter and checkpoint: needs memory for three copies of the model at most.
QUICK = ("logprobs", "gradient", "checkpointing", "sampling")
