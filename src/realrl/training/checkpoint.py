"""Checkpoints: a model folder that `AutoModelForCausalLM.from_pretrained` reads, plus the trainer's state.

Safetensors and JSON only. Under FSDP2 each rank writes some of the tensors, each of them whole, so that a checkpoint loads on
any number of ranks, and in transformers. A checkpoint is written under a temporary name and renamed when all of it is on disk:
a folder named `step_N` is complete. Its SHA256SUMS, which `sha256sum -c` reads, shows whether a file has changed since. Random
streams have no state (`realrl.seeding`): the number of finished rounds restores them all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.errors import TrainingError
from realrl.rundir.paths import CHECKPOINT_STATE
from realrl.sampling import whole
from realrl.system.files import sync
from realrl.training.distributed import World, in_lockstep, like
from realrl.training.optim import MASTER, MasterWeights
from realrl.training.progress import Progress

FORMAT = 1
_SUMS = "SHA256SUMS"
_WRITING, _REMOVED = ".writing_", ".removed_"


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    world: World,
) -> Path:
    """Write `folder/step_N` (N = finished rounds), remove all but the newest `keep` checkpoints up to it, and return its path.

    Every rank takes part. If something cannot be written, `folder` stays as it was. Raises OSError, or the exception into which
    the writing library turns it.
    """
    step = progress.rounds
    target, temporary = folder / f"step_{step}", folder / f"{_WRITING}step_{step}"
    try:
        _write_checkpoint(temporary, model, tokenizer, optimizer, progress, world)
        if world.is_main:
            _put(temporary, target)
            tidy(folder, step, keep)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    world.wait()
    return target


def _write_checkpoint(
    temporary: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    world: World,
) -> None:
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
        (temporary / CHECKPOINT_STATE).write_text(json.dumps({"format": FORMAT, **progress.state()}, indent=1))
        _write_sums(temporary)


def _put(temporary: Path, target: Path) -> None:
    """Flush the checkpoint to disk and give it its final name; a damaged checkpoint of that name is replaced."""
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)
    replaced = target.exists() and target.rename(target.with_name(f"{_REMOVED}{target.name}"))
    temporary.rename(target)
    sync(target.parent)
    sync(target.parent.parent)
    if replaced:
        shutil.rmtree(replaced)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a folder named step_N is always complete."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{_REMOVED}{checkpoint.name}")))


def tidy(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, and the remains of saves that did not finish."""
    for old in [path for path in list_checkpoints(folder) if step_of(path) <= step][:-keep]:
        _remove(old)
    for name in (_WRITING, _REMOVED):
        for path in folder.glob(f"{name}step_*"):
            shutil.rmtree(path)


def _write_sums(checkpoint: Path) -> None:
    """Write the SHA-256 of every file. trainer.json comes last, which shows that the list is complete."""
    names = sorted((file.name for file in checkpoint.iterdir()), key=lambda name: (name == CHECKPOINT_STATE, name))
    (checkpoint / _SUMS).write_text("".join(f"{_digest(checkpoint / name)}  {name}\n" for name in names))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _trained_names(model: PreTrainedModel) -> list[str]:
    """The names of the optimizer's parameters, in its order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's state as "parameter/key" and a tensor of at least one dimension."""
    names = _trained_names(model)
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            yield f"{names[index]}/{key}", value.contiguous() if value.dim() else value.reshape(1)


def _model_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights under the names that transformers gives them in files; a tied weight once."""
    saved = model.state_dict().keys()
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _save_sharded(folder: Path, stem: str, tensors: Iterator[tuple[str, torch.Tensor]], world: World) -> None:
    """Write every tensor, whole, to the file of one rank in turn. All ranks must pass the same tensors in the same order."""
    own: dict[str, torch.Tensor] = {}
    for index, (name, tensor) in enumerate(tensors):
        gathered = whole(tensor)
        if index % world.size == world.rank:
            own[name] = gathered.cpu().contiguous()
    save_file(own, folder / _shard_name(stem, world.rank, world.size), metadata={"format": "pt"})


def _shard_name(stem: str, rank: int, ranks: int) -> str:
    return f"{stem}-{rank + 1:05}-of-{ranks:05}.safetensors"


def _write_index(folder: Path, stem: str, ranks: int) -> None:
    """Write the index in which transformers looks up each tensor's file."""
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
    """Folders named step_N, oldest first."""
    return sorted((path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """N of step_N."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_whole(folder: Path) -> tuple[Path, list[str]]:
    """The newest undamaged checkpoint, and a warning for each newer one that is damaged; those are not touched.

    Raises TrainingError if there is none, or for a checkpoint of another format.
    """
    found = list_checkpoints(folder)
    if not found:
        raise TrainingError(f"nothing to resume: no checkpoint in {folder}; start with --overwrite")
    faults: dict[Path, str] = {}
    for checkpoint in reversed(found):
        faults[checkpoint] = _fault(checkpoint)
        if not faults[checkpoint]:
            return checkpoint, [
                f"WARNING: {path} is damaged ({fault}) and is not touched; an older checkpoint is used"
                for path, fault in faults.items()
                if fault
            ]
    listed = "; ".join(f"{path.name}: {fault}" for path, fault in faults.items())
    raise TrainingError(
        f"nothing to resume: no checkpoint in {folder} is undamaged ({listed}); restore one from a copy, or start over with "
        "--overwrite"
    )


def _fault(checkpoint: Path) -> str:
    """How the checkpoint is damaged; empty if it is not. Checkpoints of early versions have no SHA256SUMS: of those only
    trainer.json is checked."""
    try:
        read_progress(checkpoint)
        if not (checkpoint / _SUMS).exists():
            return ""
        listed = [line.partition("  ") for line in (checkpoint / _SUMS).read_text().splitlines()]
        if not listed or listed[-1][2] != CHECKPOINT_STATE:
            return f"{_SUMS} is cut short"
        different = [name for digest, _, name in listed if _digest(checkpoint / name) != digest]
    except (OSError, ValueError) as error:
        return str(error)
    return f"not as in {_SUMS}: {', '.join(different)}" if different else ""


def read_progress(checkpoint: Path) -> Progress:
    """The trainer's counters at the checkpoint.

    Raises OSError or ValueError for a file that is damaged, and TrainingError for one of another format.
    """
    path = checkpoint / CHECKPOINT_STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("step") != step_of(checkpoint):
        raise ValueError(f"{path} does not belong to {checkpoint.name}")
    if state.get("format") != FORMAT:
        raise TrainingError(f"{checkpoint} has format {state.get('format')}, this version reads {FORMAT}")
    try:
        return Progress.from_state(state)
    except TypeError as error:
        raise ValueError(f"{path} holds a counter that is not a number ({error})") from error


def load_optimizer(checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Load the saved moments into `optimizer`, matched by parameter name and sharded like their parameters."""
    names = _trained_names(model)
    index_of = {name: index for index, name in enumerate(names)}
    parameters = dict(model.named_parameters())
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for file in sorted(checkpoint.glob("optimizer*.safetensors")):
        for joined, value in load_file(file).items():
            name, key = joined.rsplit("/", 1)
            if name not in index_of:
                raise TrainingError(f"{file} holds {name!r}, which the model does not train")
            if key == MASTER and not isinstance(optimizer, MasterWeights):
                # If it were kept, the next save would write it unchanged, and a later start with master weights would use it.
                continue
            value = value.reshape(()) if key == "step" else like(value, parameters[name])
            entries.setdefault(index_of[name], {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
