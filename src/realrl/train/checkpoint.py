"""Checkpoints: a model folder that `AutoModelForCausalLM.from_pretrained` reads, plus the trainer's state.

Safetensors and JSON only. A checkpoint is written under a temporary name and renamed when whole, so a folder named
`step_N` is always complete. Random streams have no state (`realrl.seeding`): the step number restores them all.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.errors import TrainingError

FORMAT = 1


def save_checkpoint(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: dict[str, int | float | str],
    keep: int,
) -> Path:
    """Write `folder/step_N` (N = `step`) and remove all but the newest `keep`; returns its path."""
    target, temporary = folder / f"step_{step}", folder / f".writing_step_{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    names = [name for name, _ in model.named_parameters()]
    moments = {
        f"{names[index]}/{key}": value.contiguous() if value.dim() else value.reshape(1)
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }
    save_file(moments, temporary / "optimizer.safetensors")
    (temporary / "trainer.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if (path / "trainer.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_state(checkpoint: Path) -> dict[str, int | float | str]:
    """The trainer's counters at the checkpoint; raises TrainingError for a file that is damaged or of another format."""
    try:
        state = json.loads((checkpoint / "trainer.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(
            f"{checkpoint}/trainer.json cannot be read: {error}; remove the folder to resume earlier"
        ) from error
    if state.get("format") != FORMAT:
        raise TrainingError(f"{checkpoint} has format {state.get('format')}, this version reads {FORMAT}")
    return state


def load_optimizer(checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments into `optimizer`, matched by parameter name."""
    moments = load_file(checkpoint / "optimizer.safetensors")
    index_of = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for joined, value in moments.items():
        name, key = joined.rsplit("/", 1)
        if name not in index_of:
            raise TrainingError(f"{checkpoint}/optimizer.safetensors holds {name!r}, which the model does not have")
        entries.setdefault(index_of[name], {})[key] = value.reshape(()) if key == "step" else value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
