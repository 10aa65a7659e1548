"""Mini-batches whose loss or gradient was not finite: kept in the run folder, and replayed by `realrl debug-batch`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from realrl.config import load_config
from realrl.errors import ConfigError, DataError
from realrl.objectives import build_objective
from realrl.rundir.paths import RunPaths
from realrl.sampling import whole
from realrl.system.files import replacing, write_whole
from realrl.system.hardware import choose_device
from realrl.training.checkpoint import list_checkpoints, step_of
from realrl.training.gradient import MiniBatchGradient, gradient_settings
from realrl.training.setup import load_policy
from realrl.types import Batch, Problem, Prompt

# The most mini-batches kept in a run: the first ones say the most.
_KEPT = 3
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class BadUpdate:
    """A mini-batch whose update was skipped, with its log-probabilities under the policy, the loss, the norm of the gradient,
    and the names of the gradients and weights that were not finite."""

    batch: Batch
    old_NT: Float[Tensor, "N T"] | None
    ref_NT: Float[Tensor, "N T"] | None
    policy_NT: Float[Tensor, "N T"]
    loss: float
    grad_norm: float
    gradients: list[str]
    weights: list[str]


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """The names of tensors that hold NaN or infinity. If they are sharded, every rank must call this."""
    return [name for name, tensor in tensors if tensor is not None and not bool(torch.isfinite(whole(tensor)).all())]


def gradients_not_finite(model: PreTrainedModel) -> list[str]:
    """The names of the parameters whose gradient is not finite."""
    return not_finite((name, parameter.grad) for name, parameter in model.named_parameters())


def save_bad_update(target: Path, step: int, update: int, bad: BadUpdate) -> Path | None:
    """Write `target`, a .json file, and its tensors beside it as .safetensors.

    Returns `target`, or None if its folder already holds enough of them. Raises OSError.
    """
    if not target.exists() and len(list(target.parent.glob("*.json"))) >= _KEPT:
        return None
    batch = bad.batch
    tensors = {
        "response_ids": batch.response_ids,
        "loss_mask": batch.loss_mask,
        "group_ids": batch.group_ids,
        "rewards": batch.rewards,
        "levels": batch.levels,
        "logprobs_sampler": batch.logprobs_sampler,
        "logprobs_policy": bad.policy_NT,
        "logprobs_old": bad.old_NT,
        "logprobs_ref": bad.ref_NT,
    }
    present = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    with replacing(target.with_suffix(".safetensors")) as temporary:
        save_file(present, temporary)
    seen = {
        "step": step,
        "update": update,
        # As texts, because JSON has no NaN and no infinity.
        "loss": str(bad.loss),
        "grad_norm": str(bad.grad_norm),
        "gradients": bad.gradients,
        "weights": bad.weights,
        "prompts": [asdict(prompt) for prompt in batch.prompts],
    }
    write_whole(target, json.dumps(seen, indent=1) + "\n")
    return target


def replay(file: Path, weights: str | None = None, *, trust_remote_code: bool = False) -> str:
    """Compute a kept mini-batch again, and report what was not finite in the run and what is not finite now.

    `weights` is a model folder; by default the run's newest checkpoint up to that round, or the model that it started from.
    Raises DataError for a file that is not a kept mini-batch, and ConfigError for a run or a model that cannot be read. A model
    with code of its own needs `trust_remote_code`, because a run folder may come from anyone.
    """
    bad, seen = _load(file)
    folder = file.parent.parent
    paths = RunPaths(folder)
    config = load_config(paths.config)
    if config.model.trust_remote_code and not trust_remote_code:
        raise ConfigError(
            f"{paths.config} has model.trust_remote_code = true, so its model runs code of its own; add "
            "--trust-remote-code if you trust this folder"
        )
    earlier = [path for path in list_checkpoints(paths.checkpoints) if step_of(path) <= seen["step"]]
    weights = weights or (str(earlier[-1]) if earlier else None)
    device = choose_device(config.model.device)
    model = load_policy(config, device, weights)
    settings = gradient_settings(config, seen["step"] - 1)
    batch = replace(bad.batch, **{name: getattr(bad.batch, name).to(device) for name in _TENSORS})
    old_NT, ref_NT = (tensor if tensor is None else tensor.to(device) for tensor in (bad.old_NT, bad.ref_NT))
    try:
        report = MiniBatchGradient(model, build_objective(config.objective), settings).backward(batch, old_NT, ref_NT)
    except Exception as error:  # noqa: BLE001  a damaged file, or another model, can cause any error in torch
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(
            f"{file} cannot be computed with {weights or config.model.path} ({what}); do they belong together?"
        ) from error
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    now = replace(
        bad,
        policy_NT=report.logprobs_NT.cpu(),
        loss=report.loss,
        grad_norm=float(torch.nn.utils.get_total_norm(gradients)),
        gradients=gradients_not_finite(model),
        weights=not_finite(model.named_parameters()),
    )
    rows = len(bad.batch)
    lines = [
        f"{file}: update {seen['update']} of step {seen['step']}, {rows} rollouts of {len(bad.batch.group_ids.unique())} groups"
    ]
    lines += [
        f"{name} not finite in the file: {found}"
        for name, tensor in (("logprobs_sampler", bad.batch.logprobs_sampler), ("old", bad.old_NT), ("ref", bad.ref_NT))
        if tensor is not None and (found := _rows(bad.batch, tensor))
    ]
    lines += ["in the run:", *_describe(bad), f"again, with {weights or config.model.path}:", *_describe(now)]
    return "\n".join(lines)


_TENSORS = ("response_ids", "loss_mask", "group_ids", "rewards", "levels", "logprobs_sampler")


def _load(file: Path) -> tuple[BadUpdate, dict[str, Any]]:
    try:
        seen = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(file.with_suffix(".safetensors"))
        prompts = [
            Prompt(Problem(**prompt["problem"]), prompt["text"], tuple(prompt["token_ids"])) for prompt in seen["prompts"]
        ]
        seen |= {"step": int(seen["step"]), "update": int(seen["update"])}
        shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.dim() == 2}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"tensors of several shapes: {shapes}")
        bad = BadUpdate(
            batch=Batch(prompts=prompts, **{name: tensors[name] for name in _TENSORS}),
            old_NT=tensors.get("logprobs_old"),
            ref_NT=tensors.get("logprobs_ref"),
            policy_NT=tensors["logprobs_policy"],
            loss=float(seen["loss"]),
            grad_norm=float(seen["grad_norm"]),
            gradients=list(map(str, seen["gradients"])),
            weights=list(map(str, seen["weights"])),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, SafetensorError) as error:
        raise DataError(
            f"{file} is not a kept mini-batch ({type(error).__name__}: {error}); give a .json file of a run's "
            "debug/ folder, with its .safetensors beside it"
        ) from error
    return bad, seen


def _describe(bad: BadUpdate) -> list[str]:
    return [
        f"  loss {bad.loss:g}, gradient norm {bad.grad_norm:g}",
        f"  rollouts with log-probabilities that are not finite: {_rows(bad.batch, bad.policy_NT) or 'none'}",
        f"  gradients not finite: {_shown(bad.gradients)}",
        f"  weights not finite: {_shown(bad.weights)}",
    ]


def _rows(batch: Batch, values_NT: Tensor) -> str:
    """The rollouts with values that are not finite, with their problems and tokens; empty if there are none."""
    found = ~torch.isfinite(values_NT.cpu()) & batch.loss_mask.cpu()
    return _shown(
        f"{row} ({batch.prompts[int(batch.group_ids[row])].problem.id}, {int(found[row].sum())} of "
        f"{int(batch.loss_mask[row].sum())} tokens, first {int(found[row].nonzero()[0])})"
        for row in found.any(dim=1).nonzero().flatten().tolist()
    ).removeprefix("none")


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest if names else "none"
