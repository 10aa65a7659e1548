"""Three optimizer steps on a ragged batch, by the trainer's own update."""

import torch

from realrl.config import parse_config
from realrl.models import Reference, load_model
from realrl.models.logprobs import layout_of
from realrl.objectives import build_objective
from realrl.sampling import whole
from realrl.training.distributed import World, shard
from realrl.training.progress import Progress
from realrl.training.setup import Run
from realrl.training.update import update_policy
from realrl.types import Batch, Problem, Prompt

GROUPS = [0] * 5 + [1] * 3 + [2] * 4 + [3] * 1 + [4] * 6 + [5] * 2
REWARDS = [1, 0, 0, 1, 0] + [1, 1, 0] + [0, 0, 0, 0] + [1] + [0, 1, 1, 0, 1, 0] + [1, 0]


def ragged_batch(vocabulary: int) -> Batch:
    rng = torch.Generator().manual_seed(3)
    order = torch.randperm(len(GROUPS), generator=rng)
    lengths = torch.randint(1, 15, (len(GROUPS),), generator=rng)
    loss_mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]

    def tokens(count):
        return tuple(torch.randint(3, vocabulary, (count,), generator=rng).tolist())

    rewards = torch.tensor(REWARDS, dtype=torch.float32)
    return Batch(
        prompts=[Prompt(Problem(str(g), "", ""), "", tokens(3 + 2 * g)) for g in range(6)],
        response_ids=torch.randint(3, vocabulary, loss_mask.shape, generator=rng),
        loss_mask=loss_mask,
        group_ids=torch.tensor(GROUPS)[order],
        rewards=rewards[order],
        levels=(1 + rewards.long())[order],
        logprobs_sampler=torch.zeros(loss_mask.shape),
    )


def three_steps(folder, objective, world=None, **train):
    """Three optimizer steps of one sampling round; returns the flat weights."""
    config = parse_config(
        {
            "model": {"path": str(folder)},
            "data": {"train": "addition"},
            "objective": objective,
            "sampling": {"temperature": 0.7},
            "train": {"prompts_per_step": 6, "mini_batch_prompts": 2, **train},
        }
    )
    model = load_model(str(folder), dtype=torch.float32)
    built = build_objective(config.objective)
    reference = None
    if built.needs_ref:
        reference = load_model(str(folder), dtype=torch.float32).requires_grad_(False).eval()
        with torch.no_grad():
            reference.lm_head.weight.mul_(1.1)
    world = world or World()
    if world.size > 1 and config.train.parallel == "fsdp2":
        for one in (model, reference):
            if one is not None:
                layout_of(one)
                shard(one, bfloat16=False)
    run = Run(
        config=config,
        model=model,
        reference=None if reference is None else Reference(reference),
        objective=built,
        # Plain gradient descent: Adam would blow tiny rounding differences of near-zero gradients up to full steps.
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        device=torch.device("cpu"),
        world=world,
        **dict.fromkeys(("tokenizer", "sampler", "grader", "prompts", "held_out", "rates", "notes")),
    )
    updates = update_policy(run, ragged_batch(model.config.vocab_size), Progress(seed=0))
    assert len(updates) == 3 and all(update.finite for update in updates)
    return torch.cat([whole(p.detach()).flatten() for p in model.parameters()]), updates
