"""Rollouts of any lengths become rows of one batch, each token in its place."""

import torch

from realrl.rundir.alarms import Alarms
from realrl.training.batching import make_batch
from realrl.training.metrics import reward_metrics
from realrl.types import Problem, Prompt, Rollout, Verdict


def test_a_batch_holds_each_rollout_from_its_rows_start_and_zeros_after_it():
    rollouts = [
        Rollout(0, (5, 151_000, 7), (-0.1, 0.0, -1e-30), "", False),
        Rollout(0, (9,), (-2.5,), "", True),
        Rollout(1, (1, 2, 3, 4), (-1.0, -2.0, -3.0, -1 / 3), "", False),
    ]
    verdicts = [Verdict("correct"), Verdict("no_answer"), Verdict("wrong")]
    batch = make_batch([], rollouts, verdicts, torch.device("cpu"))
    assert batch.response_ids.tolist() == [[5, 151_000, 7, 0], [9, 0, 0, 0], [1, 2, 3, 4]]
    assert batch.loss_mask.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    expected = torch.tensor([[-0.1, 0.0, -1e-30, 0.0], [-2.5, 0.0, 0.0, 0.0], [-1.0, -2.0, -3.0, -1 / 3]])
    assert batch.logprobs_sampler.dtype == torch.float32 and torch.equal(batch.logprobs_sampler, expected)
    assert (batch.group_ids.tolist(), batch.rewards.tolist(), batch.levels.tolist()) == ([0, 0, 1], [1.0, 0.0, 0.0], [2, 0, 1])


def test_groups_of_which_none_is_mixed_ring_the_alarm_however_they_part():
    verdicts = [Verdict("correct"), Verdict("wrong"), Verdict("wrong")]
    rollouts = [Rollout(group, (2,), (0.0,), "", False) for group in range(3)]
    batch = make_batch([Prompt(Problem("", "", ""), "", (1,))] * 3, rollouts, verdicts, torch.device("cpu"))
    metrics = reward_metrics(batch, rollouts, verdicts)
    assert (metrics["groups/solved_all"], metrics["groups/solved_none"], metrics["groups/mixed"]) == (1 / 3, 2 / 3, 0)
    alarms = Alarms()
    rung = [alarm.text for _ in range(3) for alarm in alarms.check({"kind": "round", **metrics})]
    assert any("every group is all right or all wrong" in text for text in rung)
