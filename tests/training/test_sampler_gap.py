"""Which updates say how far the sampler is from the model in training."""

import torch

from realrl.training.gradient import GradientReport
from realrl.training.metrics import update_metrics
from realrl.training.update import Update
from realrl.types import Batch, Problem, Prompt


def test_the_gap_to_the_sampler_is_taken_from_on_policy_updates_alone():
    mask = torch.tensor([[True, True], [True, False]])
    batch = Batch(
        prompts=[Prompt(Problem("", "", ""), "", (1,))],
        response_ids=mask.long(),
        loss_mask=mask,
        group_ids=torch.zeros(2).long(),
        rewards=torch.tensor([1.0, 0.0]),
        levels=torch.tensor([2, 1]),
        logprobs_sampler=torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]),
    )
    none = torch.zeros(1)

    def update(row, logprobs, on_policy):
        report = GradientReport(0.0, "direct", logprobs, 0 * logprobs, none, none, none, none, torch.tensor([True]))
        return Update(torch.tensor([row]), report, 1.0, on_policy, 1, 1, 100)

    # The second update has scores of 0, too, but other weights sampled.
    first, second = torch.tensor([[-1.5, -1.75]]), torch.tensor([[5.0]])
    metrics = update_metrics(batch, [update(0, first, True), update(1, second, False)])
    assert metrics["sampler/logprob_gap"] == (0.5 + 0.25) / 2
    assert metrics["sampler/importance_max"] == torch.tensor(0.25).exp().item()
