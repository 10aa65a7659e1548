"""Checkpoints: a model folder that `AutoModelForCausalLM.from_pretrained` reads, plus the trainer's state.

Safetensors and JSON only. Where FSDP2 shards the model, each rank writes whole tensors of its own, so that a checkpoint loads
on any number of ranks, and in transformers. A checkpoint is written under a temporary name and renamed when whole, so a
folder named `step_N` is always complete. Random streams have no state (`realrl.seeding`): the step number restores them all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.errors import TrainingError
from realrl.sampling import whole
from realrl.train.distributed import World, in_lockstep, like

FORMAT = 1


def save_checkpoint(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: dict[str, int | float | str],
    keep: int,
    world: World,
) -> Path:
    """Write `folder/step_N` (N = `step`) and remove all but the newest `keep`; returns its path. Every rank takes part."""
    target, temporary = folder / f"step_{step}", folder / f".writing_step_{step}"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.wait()
    if in_lockstep(model):
        _save_sharded(temporary, "model", _model_tensors(model), world)
        _save_sharded(temporary, "optimizer", _moments(model, optimizer), world)
    elif world.is_main:
        model.save_pretrained(temporary)
        save_file(dict(_moments(model, optimizer)), temporary / "optimizer.safetensors")
    world.wait()
    if world.is_main:
        if in_lockstep(model):
            _write_index(temporary, "model", world.size)
            model.config.save_pretrained(temporary)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "trainer.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    world.wait()
    return target


def _trained_names(model: PreTrainedModel) -> list[str]:
    """The optimizer's parameters by name, in its order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's state as "parameter/key" and a tensor of at least one dimension."""
    names = _trained_names(model)
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            yield f"{names[index]}/{key}", value.contiguous() if value.dim() else value.reshape(1)


def _model_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights by the names of transformers' files; a tied weight once."""
    saved = model.state_dict().keys()
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _save_sharded(folder: Path, stem: str, tensors: Iterator[tuple[str, torch.Tensor]], world: World) -> None:
    """Every tensor whole into the file of one rank, by turns; on each rank the same tensors in the same order."""
    own: dict[str, torch.Tensor] = {}
    for index, (name, tensor) in enumerate(tensors):
        gathered = whole(tensor)
        if index % world.size == world.rank:
            own[name] = gathered.cpu().contiguous()
    save_file(own, folder / _shard_name(stem, world.rank, world.size), metadata={"format": "pt"})


def _shard_name(stem: str, rank: int, ranks: int) -> str:
    return f"{stem}-{rank + 1:05}-of-{ranks:05}.safetensors"


def _write_index(folder: Path, stem: str, ranks: int) -> None:
    """The index by which transformers finds each tensor's file."""
    placed: dict[str, str] = {}
    size = 0
    for rank in range(ranks):
        file = _shard_name(stem, rank, ranks)
        with safe_open(folder / file, framework="pt") as tensors:
            placed |= dict.fromkeys(tensors.keys(), file)
        size += (folder / file).stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


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
    """Put the saved moments into `optimizer`, matched by parameter name, each laid out as its parameter is."""
    names = _trained_names(model)
    index_of = {name: index for index, name in enumerate(names)}
    parameters = dict(model.named_parameters())
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for file in sorted(checkpoint.glob("optimizer*.safetensors")):
        for joined, value in load_file(file).items():
            name, key = joined.rsplit("/", 1)
            if name not in index_of:
                raise TrainingError(f"{file} holds {name!r}, which the model does not train")
            value = value.reshape(()) if key == "step" else like(value, parameters[name])
            entries.setdefault(index_of[name], {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
