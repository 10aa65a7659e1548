"""What verl should have done: the formulas of the paper written out, a plain model, torch's AdamW, one batch a step."""

import own_objective
import torch
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM

TAU = 0.5


def real(rows):
    """log(1 + Σ₊ e^{−s̄/τ}) + log(1 + Σ₋ e^{s̄/τ}) of each mixed group, over all groups (Eq. 6–8)."""
    losses = []
    for group in _groups(rows):
        positive = [torch.exp(-row.score / TAU) for row in group if row.reward == 1]
        negative = [torch.exp(row.score / TAU) for row in group if row.reward == 0]
        if positive and negative:
            losses.append(torch.log(1 + sum(positive)) + torch.log(1 + sum(negative)))
    return sum(losses) / len(_groups(rows))


def bce_with_kl_to_the_sampler(rows, coef=0.5):
    """Σ softplus(∓s̄/τ) of each group, mixed or not, over all groups (Eq. 11), and coef · k3 to π_old."""
    groups = _groups(rows)
    total = sum(softplus(-row.score / TAU if row.reward == 1 else row.score / TAU) for row in rows)
    return total / len(groups) + coef * sum(_k3(row.new - row.old) for row in rows) / len(rows)


def grpo_with_kl_to_the_reference(rows, epsilon=0.2, coef=0.5):
    """−mean_n mean_t min(ρA, clip(ρ)A), A = (r − mean)/(std + 1e-6) of the group (Eq. 1, 3), and coef · k3 to π_ref."""
    total = 0.0
    for group in _groups(rows):
        rewards = torch.tensor([row.reward for row in group])
        spread = rewards.std() if len(group) > 1 else torch.tensor(0.0)
        for row in group:
            advantage = (row.reward - rewards.mean()) / (spread + 1e-6)
            ratio = torch.exp(row.new - row.old)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
            total = total - gain.mean() + coef * _k3(row.new - row.ref)
    return total / len(rows)


def margin(rows, margin=0.3):
    """The objective of docs/own_objective.md, averaged over all groups."""
    groups = _groups(rows)
    scores = [[[row.score for row in group if row.reward == label] for label in (1, 0)] for group in groups]
    return sum(own_objective.margin_loss(right, wrong, margin) for right, wrong in scores) / len(groups)


def _k3(difference):
    return (torch.exp(-difference) + difference - 1).mean()


class _Row:
    def __init__(self, new, old, ref, reward, group):
        self.new, self.old, self.ref, self.reward, self.group = new, old, ref, reward, group
        self.score = (new - old).mean()


def _groups(rows):
    found = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return list(found.values())


def logprobs(model, step):
    """log π of the response tokens of each rollout of a recorded step."""
    out = []
    for prompt, response in zip(step["prompts"], step["responses"], strict=True):
        ids = torch.tensor([prompt + response])
        every = model(ids).logits[0, :-1].log_softmax(-1)
        out.append(every.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0])
    return out


def replay(folder, steps, loss, lr, eps, warmup=0):
    """Loss and gradient norm of every recorded step, and the weights after the last; the learning rate warms up from 0."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=eps, weight_decay=0.01)
    with torch.no_grad():
        ref = [logprobs(model, step) for step in steps]
    measured, old, current = [], [], None
    for number, step in enumerate(steps):
        if step["round"] != current:
            current = step["round"]
            with torch.no_grad():
                # The weights that sampled this round's rollouts.
                old = {other: logprobs(model, steps[other]) for other in range(len(steps)) if steps[other]["round"] == current}
        rows = [
            _Row(*row)
            for row in zip(logprobs(model, step), old[number], ref[number], step["rewards"], step["groups"], strict=True)
        ]
        value = loss(rows)
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, number / warmup) if warmup else lr
        optimizer.step()
        measured.append((value.item(), norm.item()))
    return measured, model.state_dict()
