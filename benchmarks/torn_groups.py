"""How many groups lie whole within one optimizer step, as verl's balancer and TRL's shuffle cut a sampling round.

    .venv/bin/python benchmarks/torn_groups.py          # TRL
    .venv-verl/bin/python benchmarks/torn_groups.py     # verl

Lengths are log-normal (median 2,500 tokens, σ = 0.6 over prompts and 0.35 within a group, at most 8,192). Each engine's own
function reorders the rows; `whole step` is the share of groups with all rollouts in one optimizer step, `whole rank` on
one rank. Prints JSON, a line for each engine that is installed.
"""

import importlib.util
import json

import torch

SETTINGS = {"128 × 8, mini-batches of 32, 8 ranks": (128, 8, 32, 8), "512 × 16, mini-batches of 32, 8 ranks": (512, 16, 32, 8)}


def lengths(prompts: int, group: int) -> torch.Tensor:
    torch.manual_seed(0)
    log = 7.824 + 0.6 * torch.randn(prompts, 1) + 0.35 * torch.randn(prompts, group)
    return log.exp().clamp(max=8192).long().flatten() + 100


def verl_parts(prompts: int, group: int, mini: int, ranks: int) -> list[list[int]]:
    """Rows of each rank in the order of its mini-batches, from verl's own balancer."""
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

    return get_seqlen_balanced_partitions(calculate_workload(lengths(prompts, group)), k_partitions=ranks, equal_size=True)


def trl_parts(prompts: int, group: int, mini: int, ranks: int) -> list[list[int]]:
    """Each rank holds consecutive rows and shuffles them with TRL's own function."""
    from trl.trainer.utils import shuffle_sequence_dict

    torch.manual_seed(0)
    rows = torch.arange(prompts * group).view(ranks, -1)
    return [shuffle_sequence_dict({"row": part})["row"].tolist() for part in rows]


def shares(parts: list[list[int]], prompts: int, group: int, mini: int) -> dict[str, float]:
    step, rank = torch.empty(prompts * group), torch.empty(prompts * group)
    size = mini * group // len(parts)
    for number, rows in enumerate(parts):
        for place, row in enumerate(rows):
            step[row], rank[row] = place // size, number
    one_step = (step.view(prompts, group) == step.view(prompts, group)[:, :1]).all(dim=1)
    one_rank = (rank.view(prompts, group) == rank.view(prompts, group)[:, :1]).all(dim=1)
    return {"whole step": round(float(one_step.float().mean()), 3), "whole rank": round(float(one_rank.float().mean()), 3)}


def main() -> None:
    for engine, parts in {"verl": verl_parts, "trl": trl_parts}.items():
        if importlib.util.find_spec(engine) is None:
            continue
        found = {name: shares(parts(*setting), *setting[:3]) for name, setting in SETTINGS.items()}
        print(json.dumps({engine: found}, ensure_ascii=False))


if __name__ == "__main__":
    main()
