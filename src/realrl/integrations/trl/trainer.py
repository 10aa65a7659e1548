"""`RealTrainer`: TRL's `GRPOTrainer` with the exact gradient of a group-coupled objective.

TRL shuffles rollouts over the micro-batches and optimizer steps of a generation, which splits groups. Here rows keep the
sampler's order, so an optimizer step has whole groups (`RealConfig` refuses other sizes). There are two routes:

direct     micro-batches of whole groups: the objective itself, with the denominators of the whole step
two-pass   any split of the rows: once per optimizer step the weights w = dL/ds of all rollouts, from scores gathered over
           the processes; each micro-batch adds the gradient of Σ w·s(θ)
"""

# TRL declares options as optional although they are set when the configuration is made.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from realrl.errors import ConfigError, TrainingError
from realrl.integrations.engines import check_signature
from realrl.integrations.trl.config import RealConfig
from realrl.models.modes import noise_of
from realrl.objectives import Groups, LossInputs, ScoreObjective
from realrl.objectives.exact import Weights, part_loss, weigh
from realrl.objectives.kl import kl_estimate
from realrl.objectives.segments import masked_token_mean

for _name, _parameters in {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_prepare_inputs": ("generation_batch",),
    "_compute_loss": ("model", "inputs"),
}.items():
    check_signature("trl", getattr(GRPOTrainer, _name), _parameters)

# Inputs of the model besides the tokens.
_MODEL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class RealTrainer(GRPOTrainer):
    """`GRPOTrainer` with `args.objective`; every other argument and feature is TRL's.

    The weighted sum of the reward functions must be 0 or 1, unless `reward_threshold` is set. A rollout leaves its group if
    every reward function gives None, or if it has no trained token. `eval_loss` is 0: the evaluation reports rewards.

    Raises ConfigError if the model or its adapters have dropout or a router loss, TrainingError for a reward that is not a
    label.
    """

    args: RealConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any
    _tag_names = ["trl", "real"]
    _name = "REAL"
    _paper = {"title": "Rewards as Labels: Revisiting RLVR from a Classification Perspective", "id": "2602.05630"}

    def __init__(self, model: Any, reward_funcs: Any = None, args: RealConfig | None = None, *rest: Any, **kwargs: Any) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RealConfig(f"{name.rstrip('/').split('/')[-1]}-REAL")
        if not isinstance(args, RealConfig):
            raise ConfigError(f"RealTrainer needs args = RealConfig(...), got {type(args).__name__}; its options are the same")
        self._objective: Any = args.build_objective()
        self._direct = args.whole_micro_batches and self._objective.sums_over_groups
        super().__init__(model, reward_funcs, args, *rest, **kwargs)
        if self.aux_loss_enabled:
            raise ConfigError("this model adds a router loss to the objective; set router_aux_loss_coef = 0.0 in RealConfig")
        noise = noise_of(self.model)
        if args.disable_dropout:
            # TRL itself switches dropout modules off, but attention and routers have their own settings.
            for owner, name in noise:
                setattr(owner, name, 0.0)
        elif noise:
            raise ConfigError(
                f"the model has noise in training ({', '.join(sorted({name for _, name in noise}))} above 0): two passes of "
                "the same weights differ, so the log-ratio of an unchanged policy is not 0; set disable_dropout = True in "
                "RealConfig and lora_dropout = 0 in LoraConfig"
            )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's rewards. Also keeps the weighted sums of all processes, with NaN for a rollout without a reward."""
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weighted_NF = rewards_NF * self.reward_weights.to(rewards_NF.device)
        rewards_N = weighted_NF.nansum(dim=1)
        if self.args.reward_threshold is not None:
            rewards_N = (rewards_N >= self.args.reward_threshold).float()
        self._rewards_N = rewards_N.masked_fill(rewards_NF.isnan().all(dim=1), torch.nan)
        return rewards_NF

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch, and a table of the rollouts of all processes, for weights and denominators."""
        rows = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return rows
        tokens_N = self.accelerator.gather(_trained(rows).sum(dim=1))
        kept_N = (tokens_N > 0) & ~self._rewards_N.isnan()
        if self._objective.needs_labels:
            _refuse_grades(self._rewards_N[kept_N])
        self._table = {
            "reward": self._rewards_N,
            "group": torch.arange(len(tokens_N), device=tokens_N.device) // self.num_generations,
            "tokens": tokens_N,
            "kept": kept_N,
        }
        local = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        return rows | {f"real_{name}": values_N[local] for name, values_N in self._table.items()}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """One micro-batch. The first one of an optimizer step also sets the weights of all its rollouts."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        per_generation, accumulation = self.args.steps_per_generation, self.args.gradient_accumulation_steps
        fresh = self._step % (per_generation * self.num_iterations) == 0 or self._buffered_inputs is None
        if fresh:
            rows: Any = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            split: Any = split_tensor_dict(rows, per_generation)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in split]
        slot = self._step % per_generation
        if slot % accumulation == 0:
            self._start_step(self._buffered_inputs[slot : slot + accumulation], slot // accumulation, fresh)
        return self._buffered_inputs[slot]

    def _start_step(self, parts: list[dict[str, Any]], index: int, fresh: bool) -> None:
        """Set the groups of optimizer step `index` of a generation, and unless the route is direct, its rollouts' weights."""
        rows_NR = self._rows_of_step(index)
        table = {name: values_N[rows_NR.flatten()] for name, values_N in self._table.items()}
        kept_N = table.pop("kept")
        self._groups = Groups(*(table[name][kept_N] for name in ("reward", "group", "tokens")))
        self._step_loss = 0.0
        self._log_step(self._groups)
        if not len(self._groups):
            return
        objective, scores_K = self._objective, None
        if isinstance(objective, ScoreObjective) and not self._direct:
            known = fresh and objective.zero_scores_when_fresh
            scores_K = None if known else self.accelerator.gather(self._scores(objective, parts))[kept_N]
            self._metrics["train"]["real/extra_passes"].append(float(not known))
        weights = weigh(objective, self._groups, scores_K, direct=self._direct)
        self._step_loss = weights.loss
        if weights.rollout is None:
            return
        weights_N = weights.rollout.new_zeros(len(kept_N), *weights.rollout.shape[1:])
        weights_N[kept_N] = weights.rollout
        local_N = weights_N.view(*rows_NR.shape, *weights_N.shape[1:])[self.accelerator.process_index]
        for part, weights in zip(parts, local_N.split([len(part["real_kept"]) for part in parts]), strict=True):
            part["real_weight"] = weights

    def _rows_of_step(self, index: int) -> Tensor:
        """Table rows of optimizer step `index` of a generation: (processes, rollouts of each)."""
        rows_NR = torch.arange(len(self._table["kept"]), device=self.accelerator.device)
        rows_NR = rows_NR.view(self.accelerator.num_processes, -1)
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return rows_NR[:, index * size : (index + 1) * size]

    @torch.no_grad()
    def _scores(self, objective: ScoreObjective, parts: list[dict[str, Any]]) -> Float[Tensor, "N ..."]:
        """The scores of this process's rollouts of an optimizer step under the current weights; 0 for rollouts left out."""
        scores = []
        with disable_gradient_checkpointing(self.model, cast(dict, self.args.gradient_checkpointing_kwargs)):
            for part in parts:
                policy_NT, _ = self._token_stats(self.model, part)
                scores_N = policy_NT.new_zeros(len(policy_NT), *objective.score_shape, dtype=torch.float32)
                if bool(part["real_kept"].any()):
                    scores_N[part["real_kept"]] = objective.scores(_loss_inputs(part, policy_NT))
                scores.append(scores_N)
        return torch.cat(scores)

    def _token_stats(self, model: Any, part: dict[str, Any], entropy: bool = False) -> tuple[Tensor, Any]:
        """Log-probabilities (N, T) of a micro-batch's completion tokens and, with `entropy`, entropies; computed by TRL."""
        policy_NT, entropy_NT, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1),
            torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1),
            part["completion_ids"].size(1),
            compute_entropy=entropy,
            **{name: part[name] for name in _MODEL_INPUTS if name in part},
        )
        return policy_NT, entropy_NT

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """A micro-batch's part of the loss of the optimizer step, times the processes, because they average gradients."""
        if not self.model.training:
            return torch.zeros((), device=self.accelerator.device)
        policy_NT, entropy_NT = self._token_stats(model, inputs, entropy=True)
        self._log_part(inputs, policy_NT.detach(), entropy_NT)
        kept_N, processes = inputs["real_kept"], self.accelerator.num_processes
        if not bool(kept_N.any()):
            loss = 0 * policy_NT.sum()
        else:
            weights_N = inputs.get("real_weight")
            weights = Weights(None if weights_N is None else weights_N[kept_N])
            rows = torch.arange(int(kept_N.sum()), device=kept_N.device)
            loss = part_loss(self._objective, _loss_inputs(inputs, policy_NT), self._groups, weights, rows)
        # The value that no micro-batch has alone, shared over the micro-batches, so that the logged loss is right.
        return loss * processes + self._step_loss / self.args.gradient_accumulation_steps

    def _log_step(self, kept: Groups) -> None:
        """Log metrics of an optimizer step's groups."""
        groups = [kept.rewards[kept.index == group] for group in range(kept.count)]
        metrics = self._metrics["train"]
        metrics["real/groups_solved_all"].append(sum(bool((r == 1).all()) for r in groups) / max(len(groups), 1))
        metrics["real/groups_solved_none"].append(sum(bool((r == 0).all()) for r in groups) / max(len(groups), 1))
        metrics["real/rollouts_left_out"].append(float(len(self._table["kept"]) - int(self._table["kept"].sum())))

    def _log_part(self, part: dict[str, Any], policy_NT: Tensor, entropy_NT: Tensor) -> None:
        """Log means over a micro-batch's rollouts of all processes: |s̄|, entropy and, with a penalty, the KL estimate."""
        mask_NT, kl = _trained(part), self._objective.kl
        old_NT = part.get("old_per_token_logps", policy_NT)
        columns = {
            "real/abs_score_mean": masked_token_mean(policy_NT - old_NT, mask_NT).abs(),
            "entropy": masked_token_mean(entropy_NT.detach(), mask_NT),
        }
        if kl.active:
            target_NT = part["ref_per_token_logps"] if kl.target == "ref" else old_NT
            columns["kl"] = masked_token_mean(kl_estimate(policy_NT, target_NT, kl.estimator), mask_NT)
        local_NC = torch.stack([*columns.values(), part["real_kept"]], dim=1).float()
        values_NC = self.accelerator.gather(local_NC)
        values_KC = values_NC[values_NC[:, -1] == 1]
        if len(values_KC):
            metrics = self._metrics["train"]
            for name, values_K in zip(columns, values_KC.T, strict=False):
                metrics[name].append(float(values_K.mean()))
            metrics["real/abs_score_max"].append(float(values_KC[:, 0].max()))


def _loss_inputs(part: dict[str, Any], policy_NT: Tensor) -> LossInputs:
    """The objective's inputs: the rows of a micro-batch that count."""
    # If a generation has one optimizer step, TRL gives no old log-probabilities: they are the policy's.
    old_NT = part.get("old_per_token_logps", policy_NT.detach())
    ref_NT = part.get("ref_per_token_logps")
    if "importance_sampling_ratio" in part:
        # TRL's correction for vLLM's numerics: the value stays, the gradient of each token is weighted.
        policy_NT = policy_NT.detach() + part["importance_sampling_ratio"] * (policy_NT - policy_NT.detach())
    kept_N = part["real_kept"]
    return LossInputs(
        logprobs_policy=policy_NT[kept_N].float(),
        logprobs_old=old_NT[kept_N].float(),
        logprobs_ref=None if ref_NT is None else ref_NT[kept_N].float(),
        loss_mask=_trained(part)[kept_N],
        rewards=part["real_reward"][kept_N],
        group_ids=part["real_group"][kept_N],
    )


def _trained(rows: dict[str, Any]) -> Tensor:
    """(N, T) bool: completion tokens that the model wrote, without those of tools."""
    return (rows["completion_mask"] * rows.get("tool_mask", 1)).bool()


def _refuse_grades(rewards_K: Tensor) -> None:
    other = rewards_K[(rewards_K != 0) & (rewards_K != 1)]
    if len(other):
        raise TrainingError(
            f"the reward functions gave {sorted(set(other.tolist()))[:5]}; this objective reads rewards as class labels and "
            "needs their weighted sum to be 0 or 1: set reward_threshold in RealConfig, give one 0/1 function, or choose an "
            "objective with advantages, such as objective = {'type': 'grpo'}"
        )
