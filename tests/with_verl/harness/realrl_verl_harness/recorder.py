"""Our trainers, which here also write what every optimizer step was given and what verl measured of it.

REALRL_RECORD_DIR/steps.jsonl, a line for each optimizer step: `round` (verl's global step, whose rollouts all come from the
weights at its start), `prompts`, `responses` and `masks` (token ids, 1 on response tokens) of each rollout, its `reward` and
`group`, and `loss`, `grad_norm`, `lr`, `abs_s_max`, `rows` (how many rows the workers saw).
"""

import json
import os
from pathlib import Path

import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import register_trainer

from realrl.integrations.verl.trainer import RealTrainerColocateAsync, RealTrainerSync


class Recorder:
    def _optimizer_step(self, mini, update, gains_NT):
        measured = super()._optimizer_step(mini, update, gains_NT)
        fields = ["prompts", "responses", "response_mask"]
        rollouts = mini.rollouts
        data = tq.kv_batch_get(keys=rollouts.keys, partition_id=rollouts.partition_id, select_fields=fields)
        inputs = mini.inputs
        line = {
            "round": self.global_steps,
            "fresh": mini.fresh,
            "prompts": [ids.tolist() for ids in data["prompts"].unbind()],
            "responses": [ids.tolist() for ids in data["responses"].unbind()],
            "masks": [mask.int().tolist() for mask in data["response_mask"].unbind()],
            "rewards": inputs.rewards.tolist(),
            "groups": inputs.group_ids.tolist(),
            "loss": float(self.objective.evaluate(inputs).loss),
            "grad_norm": measured["actor/grad_norm"],
            "lr": measured["actor/lr"],
            "abs_s_max": float(((inputs.logprobs_policy - inputs.logprobs_old) * inputs.loss_mask).abs().max()),
            "rows": len(update.keys),
        }
        with (Path(os.environ["REALRL_RECORD_DIR"]) / "steps.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return measured


@register_trainer("recorded_sync")
class RecordedSync(Recorder, RealTrainerSync):
    pass


@register_trainer("recorded_colocate_async")
class RecordedColocateAsync(Recorder, RealTrainerColocateAsync):
    pass
