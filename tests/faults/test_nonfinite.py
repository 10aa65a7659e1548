"""A loss or gradient that is not finite: the update is skipped, its mini-batch kept, and `realrl debug-batch` replays it."""

import json
import math
import re
import shutil

import pytest
import torch
from children import Child
from safetensors.torch import load_file, save_file
from small_runs import config, records

from realrl.errors import ConfigError, DataError, TrainingError
from realrl.models import load_model
from realrl.models.logprobs import response_logprobs
from realrl.objectives import LossInputs, build_objective
from realrl.training import train
from realrl.training.debug import replay
from realrl.types import Batch, Problem, Prompt

OBJECTIVE = {"type": "real", "degenerate_groups": "use"}
# One finite update makes weights of 1e18, whose products are not finite.
EXPLODING = {
    "optim": {"lr": 3e18, "schedule": "constant", "warmup_steps": 0},
    "checkpoint": {"every": 1},
    "data": {"eval": []},
    "objective": OBJECTIVE,
}
NAME = re.compile(r"step_(\d{6})_update_(\d)\.json")


@pytest.fixture(scope="module")
def exploded(tiny_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("exploded") / "run"
    with pytest.raises(TrainingError, match="updates in a row were not finite"):
        train(config(tiny_folder, run, **EXPLODING, train={"steps": 9, "max_nonfinite_steps": 6}))
    return run


def test_the_first_mini_batches_are_kept_as_they_were(exploded):
    skipped = [(record["step"], record["train/nonfinite"]) for record in records(exploded) if record["train/nonfinite"]]
    assert sum(count for _, count in skipped) >= 6
    kept = sorted((exploded / "debug").glob("*.json"))
    assert len(kept) == 3 and len(list((exploded / "debug").iterdir())) == 6
    for file in kept:
        step = int(NAME.fullmatch(file.name)[1])
        tensors, seen = load_file(file.with_suffix(".safetensors")), json.loads(file.read_text())
        assert step in dict(skipped) and seen["step"] == step
        # Two whole groups of four, as the optimizer step had them.
        assert sorted(tensors["group_ids"].unique(return_counts=True)[1].tolist()) == [4, 4]
        assert not all(math.isfinite(float(seen[name])) for name in ("loss", "grad_norm"))


def test_a_replay_shows_the_fault_and_on_sound_weights_the_true_figures(exploded, tiny_folder, tmp_path):
    file = max((exploded / "debug").glob("*.json"))
    child = Child(["debug-batch", str(file)], tmp_path)
    assert child.wait() == 0
    out = child.out()
    then, now = out.split("in the run:")[1].split(f"again, with {exploded / 'checkpoints'}")
    for part in (then, now):
        assert re.search(r"gradient norm (nan|inf)", part) or "loss nan" in part
    # On the model that the run began with everything is finite: against the objective of all rows at once.
    tensors, seen = load_file(file.with_suffix(".safetensors")), json.loads(file.read_text())
    tensors["logprobs_old"] = torch.zeros_like(tensors["logprobs_sampler"]) - 2
    save_file(tensors, file.with_suffix(".safetensors"))
    out = replay(file, str(tiny_folder))
    model = load_model(str(tiny_folder), dtype=torch.float32)
    names = ("response_ids", "loss_mask", "group_ids", "rewards", "levels", "logprobs_sampler")
    prompts = [Prompt(Problem("", "", ""), "", tuple(prompt["token_ids"])) for prompt in seen["prompts"]]
    batch = Batch(prompts=prompts, **{name: tensors[name] for name in names})
    policy = response_logprobs(model, batch, temperature=1.0).logprobs
    objective = build_objective(OBJECTIVE)
    loss = objective.evaluate(
        LossInputs(policy, tensors["logprobs_old"], batch.loss_mask, batch.rewards, batch.group_ids, levels=batch.levels)
    ).loss
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    found = re.search(r"loss (\S+), gradient norm (\S+)\n.*: none\n.*: none\n.*: none$", out)
    assert found and float(found[1]) == pytest.approx(loss.item(), rel=1e-4)
    assert float(found[2]) == pytest.approx(norm.item(), rel=1e-4)


def test_the_rollouts_the_tokens_and_the_tensors_are_named(exploded, tiny_folder, tmp_path):
    """One weight of a copy of the model is NaN, and one of the old log-probabilities."""
    file = min((exploded / "debug").glob("*.json"))
    weights = load_file(tiny_folder / "model.safetensors")
    broken = "model.layers.1.mlp.down_proj.weight"
    weights[broken][3, 5] = float("nan")
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    out = replay(file, str(model)).split("again, with")[1]
    assert f"weights not finite: {broken}" in out and "gradients not finite: model." in out
    tensors = load_file(file.with_suffix(".safetensors"))
    length = int(tensors["loss_mask"][0].sum())
    assert "are not finite: 0 (" in out and f", {length} of {length} tokens, first 0)" in out


def test_code_of_a_model_runs_only_where_it_is_named_again(exploded, tiny_folder, tmp_path):
    run = shutil.copytree(exploded, tmp_path / "run")
    recipe = run / "config.toml"
    recipe.write_text(recipe.read_text().replace("trust_remote_code = false", "trust_remote_code = true"))
    file = min((run / "debug").glob("*.json"))
    with pytest.raises(ConfigError, match="add --trust-remote-code if you trust this folder"):
        replay(file)
    assert "again, with" in replay(file, str(tiny_folder), trust_remote_code=True)


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x.json is not a kept mini-batch"):
        replay(tmp_path / "x.json")
