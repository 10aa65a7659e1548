"""verl's trainers `sync` and `colocate_async` with the update of the actor replaced: `real_sync`, `real_colocate_async`.

verl balances the rollouts of a step over its ranks and splits them into mini-batches without regard to groups. Here a
mini-batch has whole groups and is one call of the workers. The driver computes the gradient of the objective with respect to
each token's log-probability, and the workers may split the rows in any way (`loss.py`).
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.workers.utils.padding import response_from_nested, response_to_nested

from realrl.errors import TrainingError
from realrl.integrations.engines import check_signature
from realrl.integrations.verl.checks import check_config
from realrl.integrations.verl.gradient import plan_mini_batches
from realrl.integrations.verl.loss import PER_MINI_BATCH
from realrl.objectives import Groups, LossInputs, LossOutput
from realrl.objectives.exact import token_gradient
from realrl.objectives.segments import masked_token_mean

# The methods that are replaced below, and the functions that are called.
check_signature("verl", PPOTrainer.__init__, ["config"])
check_signature("verl", PPOTrainer._init_dataloader, [])
check_signature("verl", PPOTrainer._get_required_batch_multiple, ["dp_size"])
check_signature("verl", PPOTrainer._update_actor, ["batch", "metrics"])
check_signature("verl", upsample_batch_to_divisible_size, ["batch", "batch_multiple", "eos_token_id"])


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """Whole groups of rollouts: their keys in TransferQueue, and the objective's inputs.

    `update`: the rows that can get a gradient and so go through the model, with padding rows up to a multiple; None if there
    is no such row. `fresh`: no optimizer step lies between sampling and this one.
    """

    rollouts: KVBatchMeta
    update: KVBatchMeta | None
    inputs: LossInputs
    fresh: bool


class RealTrainer(PPOTrainer):
    """A mixin for one of verl's trainers. `base_mode` is the `trainer.v1.trainer_mode` of that trainer.

    Raises ConfigError, before any worker starts, for a configuration that would not give the objective's exact gradient.
    """

    base_mode: ClassVar[str]

    def __init__(self, config: DictConfig) -> None:
        self.objective = check_config(config)
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.base_mode
            config.algorithm.adv_estimator = PER_MINI_BATCH
        super().__init__(config)

    def _init_dataloader(self) -> None:
        """verl advances the learning rate at every call of the workers, which here is every optimizer step."""
        super()._init_dataloader()
        actor = self.config.actor_rollout_ref.actor
        updates = self.config.data.train_batch_size // actor.ppo_mini_batch_size * actor.ppo_epochs
        with open_dict(self.config):
            actor.optim.total_training_steps *= updates
            if actor.optim.lr_warmup_steps > 0:
                actor.optim.lr_warmup_steps *= updates

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """The rows of a call are a multiple of this: without dynamic micro-batches, each rank needs whole micro-batches."""
        actor, rollout, ref = (self.config.actor_rollout_ref[part] for part in ("actor", "rollout", "ref"))
        sizes = []
        if not actor.use_dynamic_bsz:
            sizes.append(actor.ppo_micro_batch_size_per_gpu)
        if not rollout.log_prob_use_dynamic_bsz:
            sizes.append(rollout.log_prob_micro_batch_size_per_gpu)
        if self.use_reference_policy and not ref.log_prob_use_dynamic_bsz:
            sizes.append(ref.log_prob_micro_batch_size_per_gpu)
        return dp_size * math.lcm(*sizes)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """`ppo_epochs` passes over the step's rollouts, one optimizer step for each mini-batch of whole groups.

        As in our own trainer, a mini-batch without a gradient takes no step, e.g. if each group is all right or all wrong.
        """
        found: dict[str, list[float]] = defaultdict(list)
        steps = passes = 0
        for rows in self._plan(batch):
            mini = self._mini_batch(_select(batch, rows), fresh=steps == 0)
            gradient_NT, out = token_gradient(self.objective, mini.inputs)
            measured = _step_metrics(mini, out)
            if mini.update is not None:
                measured |= self._optimizer_step(mini, mini.update, -gradient_NT)
                steps += 1
                passes += not mini.fresh
            for name, value in measured.items():
                found[name].append(value)
        for name, values in found.items():
            metrics[name] = float(np.max(values) if name.endswith("max") else np.mean(values))
        metrics["real/optimizer_steps"] = steps
        metrics["real/extra_passes"] = passes
        return batch

    def _plan(self, batch: KVBatchMeta) -> Iterator[list[int]]:
        """Rows of each mini-batch, through all epochs, without padding rows.

        The draws depend only on the seed, the step and the epoch, so a resumed run draws the same.
        """
        actor = self.config.actor_rollout_ref.actor
        real = [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        parts = [batch.keys[row].rsplit("_", 2) for row in real]
        several = sorted({batch.keys[row] for row, (_, _, output) in zip(real, parts, strict=True) if output != "0"})
        if several:
            raise TrainingError(
                f"the agent loop gave several outputs for one rollout ({several[0]}), but an objective needs one for each; "
                "use a loop with one output, e.g. actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent"
            )
        uids = [uid for uid, _, _ in parts]
        for epoch in range(actor.ppo_epochs):
            seed = [actor.data_loader_seed, self.global_steps, epoch]
            shuffle = np.random.default_rng(seed) if actor.shuffle else None
            for rows in plan_mini_batches(uids, actor.ppo_mini_batch_size, shuffle):
                yield [real[row] for row in rows]

    def _mini_batch(self, rollouts: KVBatchMeta, fresh: bool) -> MiniBatch:
        """The objective's inputs of these rollouts under the current policy, and the rows that need the model."""
        fields = ["rm_scores", "response_mask", "old_log_probs", "extra_fields"]
        if self.objective.needs_ref:
            fields.append("ref_log_prob")
        data = tq.kv_batch_get(keys=rollouts.keys, partition_id=rollouts.partition_id, select_fields=fields)
        uids = [key.rsplit("_", 2)[0] for key in rollouts.keys]
        numbers = {uid: number for number, uid in enumerate(dict.fromkeys(uids))}
        old_NT = data["old_log_probs"].to_padded_tensor(0.0).float()
        rewards_N = data["rm_scores"].to_padded_tensor(0.0).sum(dim=1).float()
        group_ids_N = torch.tensor([numbers[uid] for uid in uids])
        levels_N = _levels(data.get("extra_fields", None), len(uids))
        mask_NT = data["response_mask"].to_padded_tensor(0).bool()
        active_N = self.objective.carries_gradient(Groups(rewards_N, group_ids_N, mask_NT.sum(dim=1), levels_N))
        rows = active_N.nonzero().flatten().tolist()
        update = self._padded(_select(rollouts, rows)) if rows else None
        policy_NT = old_NT.clone()
        if update is not None and not fresh:
            for row, logprobs_T in zip(rows, self._score(update, [rollouts.keys[row] for row in rows]), strict=True):
                policy_NT[row, : len(logprobs_T)] = logprobs_T
        inputs = LossInputs(
            logprobs_policy=policy_NT,
            logprobs_old=old_NT,
            logprobs_ref=data["ref_log_prob"].to_padded_tensor(0.0).float() if self.objective.needs_ref else None,
            loss_mask=mask_NT,
            rewards=rewards_N,
            group_ids=group_ids_N,
            levels=levels_N,
        )
        return MiniBatch(rollouts, update, inputs, fresh)

    def _padded(self, rows: KVBatchMeta) -> KVBatchMeta:
        """These rows and synthetic rows without a response token up to a multiple, balanced over the ranks."""
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        multiple = self._get_required_batch_multiple(ranks)
        padded = upsample_batch_to_divisible_size(rows, multiple, self.tokenizer.eos_token_id)
        synthetic = padded.keys[len(rows.keys) :]
        if synthetic:
            # They are made from a row of the data set and lack the fields that the driver has added since.
            zeros = torch.nested.as_nested_tensor([torch.zeros(1) for _ in synthetic], layout=torch.jagged)
            names = ["old_log_probs", "advantages", "returns", *(["ref_log_prob"] if self.use_reference_policy else [])]
            fields = TensorDict({name: zeros for name in names}, batch_size=len(synthetic))
            tq.kv_batch_put(keys=synthetic, partition_id=padded.partition_id, fields=fields)
        workload = calculate_workload(torch.tensor([tag["seq_len"] for tag in padded.tags]))
        parts = get_seqlen_balanced_partitions(workload, k_partitions=ranks, equal_size=True)
        padded = _select(padded, [row for part in parts for row in part])
        padded.extra_info = {"temperature": self.config.actor_rollout_ref.rollout.temperature}
        return padded

    def _score(self, update: KVBatchMeta, keys: Sequence[str]) -> Sequence[Tensor]:
        """Log-probabilities of the response tokens of `keys`, which are rows of `update`, under the current policy."""
        request = _select(update, range(len(update.keys)))
        request.extra_info = {**update.extra_info, "calculate_entropy": False, "compute_loss": False}
        self.actor_rollout_wg.compute_log_prob(request)
        fields = ["log_probs", "response_mask"]
        data = tq.kv_batch_get(keys=list(keys), partition_id=update.partition_id, select_fields=fields)
        return response_from_nested(data["log_probs"], data["response_mask"]).unbind()

    def _optimizer_step(self, mini: MiniBatch, update: KVBatchMeta, gains_NT: Tensor) -> dict[str, float]:
        """Give each token's gain to the workers as its advantage, and let them take one step. Returns verl's metrics."""
        actor = self.config.actor_rollout_ref.actor
        keys, partition = mini.rollouts.keys, mini.rollouts.partition_id
        mask = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["response_mask"])["response_mask"]
        gains = response_to_nested(gains_NT, mask)
        tq.kv_batch_put(keys=keys, partition_id=partition, fields=TensorDict({"advantages": gains}, batch_size=len(keys)))
        update.extra_info.update(
            calculate_entropy=actor.calculate_entropy,
            distillation_use_topk=False,
            distillation_only=False,
            global_batch_size=len(update.keys),
            mini_batch_size=len(update.keys),
            epochs=1,
            seed=actor.data_loader_seed,
            dataloader_kwargs={"shuffle": False},
        )
        output = rename_dict(self.actor_rollout_wg.update_actor(update)["metrics"], "actor/")
        if "actor/mfu" in output:
            output["perf/mfu/actor"] = output.pop("actor/mfu")
        own = set(mini.rollouts.keys)
        synthetic = [key for key in update.keys if key not in own]
        if synthetic:
            tq.kv_clear(keys=synthetic, partition_id=partition)
        return reduce_metrics(output)


@register_trainer("real_sync")
class RealTrainerSync(RealTrainer, PPOTrainerSync):
    """Sampling and training alternate on the same devices."""

    base_mode = "sync"


@register_trainer("real_colocate_async")
class RealTrainerColocateAsync(RealTrainer, PPOTrainerColocateAsync):
    """Sampling and training on the same devices; long rollouts are interrupted and continue in the next step."""

    base_mode = "colocate_async"


def _select(batch: KVBatchMeta, rows: Sequence[int]) -> KVBatchMeta:
    part = KVBatchMeta(
        partition_id=batch.partition_id, keys=[batch.keys[row] for row in rows], tags=[batch.tags[row] for row in rows]
    )
    part.extra_info = copy.copy(batch.extra_info)
    return part


def _levels(extra_fields: Any, count: int) -> Tensor | None:
    """TRPA's levels, if the reward function gives them for every rollout, as `reward.py` does."""
    if extra_fields is None:
        return None
    infos = [(fields or {}).get("reward_extra_info") or {} for fields in extra_fields.tolist()]
    if len(infos) != count or any(info.get("level") is None for info in infos):
        return None
    return torch.tensor([int(info["level"]) for info in infos])


def _step_metrics(mini: MiniBatch, out: LossOutput) -> dict[str, float]:
    """The objective's metrics, |s̄| of the rollouts (0 for those left out), and the share that went through the model."""
    inputs = mini.inputs
    distance_N = masked_token_mean(inputs.logprobs_policy - inputs.logprobs_old, inputs.loss_mask).abs()
    own = set(mini.rollouts.keys)
    updated = [key for key in mini.update.keys if key in own] if mini.update is not None else []
    return {
        **{f"real/{name}": value for name, value in out.metrics.items()},
        "real/abs_s": float(distance_N.mean()),
        "real/abs_s_max": float(distance_N.max()),
        "real/rollouts": float(len(own)),
        "real/updated_share": len(updated) / len(own),
    }
