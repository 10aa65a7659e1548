"""The weights after three optimizer steps are the same on 1, 2 and 4 ranks, whatever the groups and the layout of the model."""

import json

import forked
import pytest
import ranks as one_rank
import torch
from safetensors.torch import load_file
from three_steps import ragged_batch, three_steps

from realrl.models import load_model
from realrl.training.distributed import World, deal_groups

CASES = {
    "real": [{"type": "real"}, {}],
    "two_pass": [{"type": "real"}, {"gradient_route": "two_pass", "micro_batch_tokens": 25}],
    "shuffled": [{"type": "real"}, {"micro_batch_tokens": 40, "shuffle_rollouts": True}],
    "every_group": [{"type": "real", "degenerate_groups": "use"}, {"micro_batch_tokens": 60}],
    "reference": [{"type": "grpo", "kl": {"target": "ref", "coef": 0.1}}, {"micro_batch_tokens": 60}],
    "dapo": [{"type": "dapo"}, {}],
    "disco": [{"type": "disco"}, {"micro_batch_tokens": 60}],
}


def on_ranks(count, folder, out, cases):
    """Run tests/support/ranks.py on `count` gloo processes; what rank 0 wrote."""
    for rank in forked.on_ranks(count, one_rank.main, str(folder), str(out), json.dumps(cases)):
        assert rank.returncode == 0, rank.stderr[-3000:]
    return load_file(out)


@pytest.fixture(scope="module")
def alone(tiny_folder):
    initial = torch.cat([p.detach().flatten() for p in load_model(str(tiny_folder), dtype=torch.float32).parameters()])
    return initial, {name: three_steps(tiny_folder, objective, **train) for name, (objective, train) in CASES.items()}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_change_the_result(tiny_folder, tmp_path, alone, ranks, parallel):
    initial, expected = alone
    cases = {name: [objective, {**train, "parallel": parallel}] for name, (objective, train) in CASES.items()}
    found = on_ranks(ranks, tiny_folder, tmp_path / "out.safetensors", cases)
    for name, (weights, updates) in expected.items():
        moved = (weights - initial).norm()
        assert (found[f"{name}/weights"] - weights).norm() / moved < 1e-5, name
        torch.testing.assert_close(found[f"{name}/losses"].tolist(), [u.report.loss for u in updates], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[f"{name}/norms"].tolist(), [u.grad_norm for u in updates], rtol=1e-4, atol=1e-6)
        entropy = torch.cat([update.report.entropy_N for update in updates])
        torch.testing.assert_close(found[f"{name}/entropy"], entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 4, 9])
def test_groups_are_dealt_whole_once_and_evenly(ranks):
    batch = ragged_batch(32)
    parts = deal_groups(batch, torch.arange(len(batch)), ranks)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(batch)))
    owners = [set(batch.group_ids[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == 6 == len(set().union(*owners))
    loads = [
        int(batch.loss_mask[part].sum()) + sum(len(batch.prompts[g].token_ids) for g in own)
        for part, own in zip(parts, owners, strict=True)
    ]
    largest = max(int(batch.loss_mask[batch.group_ids == g].sum()) + len(batch.prompts[g].token_ids) for g in range(6))
    # Greedy dealing in order of size is never worse than the mean by more than the largest group.
    assert max(loads) <= sum(loads) / ranks + largest
    assert ranks < 9 or 0 in loads


def test_alone_every_exchange_is_the_identity():
    world = World()
    assert world.merge(world.share([3, 1, 2])) == [3, 1, 2] and world.largest(5, torch.device("cpu")) == 5
    parts = [World(rank, 3).share(range(7)) for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
