"""Several processes under torchrun: what they exchange, how they share the work, and how the model is sharded.

Every rank knows the whole batch. The groups of a mini-batch are divided by token cost; each rank computes its groups with the
denominators of the whole mini-batch, and the gradients are summed. So the result does not depend on the number of ranks.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from realrl.models.logprobs import Layout, TokenStats, response_logprobs
from realrl.types import Batch

_Item = TypeVar("_Item")
# Ranks wait for the slowest sampler and grader, and while rank 0 writes.
_TIMEOUT = datetime.timedelta(hours=2)
# Gradients are summed in blocks of this many elements (256 MiB in float32).
_BUCKET = 1 << 26


@dataclass(frozen=True, slots=True)
class World:
    """This process among all ranks. With one process, every exchange returns its input."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This rank's part of a list: every `size`-th item. Parts differ by at most one item, and may be empty."""
        return items[self.rank :: self.size]

    def merge(self, own: Sequence[_Item]) -> list[_Item]:
        """The inverse of `share`: the whole list from every rank's part of it."""
        if self.size == 1:
            return list(own)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(own))
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def of_main(self, value: _Item) -> _Item:
        """Rank 0's value on every rank."""
        return self.merge([value])[0]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def largest(self, value: int, device: torch.device) -> int:
        """The largest value of all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on the others, which find what it wrote to disk."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that torchrun started (it sets environment variables); without torchrun, a world of one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    yield World(dist.get_rank(), size, local_rank)
    # Not after an error: other ranks may be waiting in an exchange. torchrun sees that this rank ended, and stops them.
    dist.destroy_process_group()


def deal_groups(batch: Batch, rows: Tensor, ranks: int) -> list[Tensor]:
    """Divide the given rows among the ranks, in whole groups: the group with most tokens goes first, to the least loaded rank.

    A rank may get no rows. The result is the same on every rank.
    """
    if ranks == 1:
        return [rows]
    lengths, group_of = batch.loss_mask.sum(dim=1).tolist(), batch.group_ids.tolist()
    members: dict[int, list[int]] = {}
    for row in rows.tolist():
        members.setdefault(group_of[row], []).append(row)
    cost = {group: len(batch.prompts[group].token_ids) + sum(lengths[row] for row in own) for group, own in members.items()}
    parts: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for group in sorted(members, key=lambda group: (-cost[group], group)):
        least = load.index(min(load))
        parts[least] += members[group]
        load[least] += cost[group]
    return [torch.tensor(sorted(part), dtype=torch.long) for part in parts]


def sum_gradients(model: PreTrainedModel, world: World) -> None:
    """Replace every rank's gradients by their sum; a rank that computed nothing adds 0.

    For models that each rank holds whole: FSDP2 sums in its own backward pass.
    """
    if world.size == 1 or in_lockstep(model):
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A parameter that no rank used keeps no gradient, so the optimizer skips it, as it would on one rank.
    used = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
    world.sum_(used)
    bucket: list[torch.nn.Parameter] = []
    for parameter, ranks_with in zip(trained, used.tolist(), strict=True):
        if not ranks_with:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter)
        if sum(one.numel() for one in bucket) >= _BUCKET:
            _sum_bucket(bucket, world)
            bucket = []
    _sum_bucket(bucket, world)


def _sum_bucket(parameters: Sequence[torch.nn.Parameter], world: World) -> None:
    # A dict has the same order on every rank; a set may not.
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        gradients = [p.grad for p in parameters if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        world.sum_(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def shard(model: PreTrainedModel, *, bfloat16: bool) -> None:
    """Shard the model over all ranks with FSDP2, layer by layer. With `bfloat16` it computes in bfloat16 and sums gradients in
    float32.

    `response_logprobs` becomes a method of the model, so that FSDP2 gathers embeddings and head around it. Call `layout_of`
    before this, while every rank holds the whole model.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in [module for module in model.modules() if type(module).__name__ in blocks] + [model]:
        sharded: Any = fully_shard(module, mp_policy=policy)
        # The loss already has the denominators of the whole mini-batch, so gradients are summed, not averaged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    whole_model: Any = model
    whole_model.sharded_stats = MethodType(_sharded_stats, model)
    register_fsdp_forward_method(model, "sharded_stats")


def _sharded_stats(model: PreTrainedModel, batch: Batch, temperature: float, layout: Layout | None) -> tuple[Tensor, ...]:
    # Plain tensors, because FSDP2 attaches its hooks to them.
    stats = response_logprobs(model, batch, temperature=temperature, layout=layout)
    return stats.logprobs.clone(), stats.entropy, stats.top1


def in_lockstep(model: PreTrainedModel) -> bool:
    """Whether a pass through the model needs every rank."""
    return isinstance(model, FSDPModule)


def token_stats_of(model: PreTrainedModel, batch: Batch, temperature: float, layout: Layout | None) -> TokenStats:
    """`response_logprobs`, also of a sharded model, for which every rank must call it equally often."""
    if in_lockstep(model):
        sharded: Any = model
        return TokenStats(*sharded.sharded_stats(batch, temperature, layout))
    return response_logprobs(model, batch, temperature=temperature, layout=layout)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
