"""Our objectives and verifier inside verl's own trainer: `trainer.v1.trainer_mode=real_sync` (docs/scale_out.md).

plugin.py     what verl loads in every process: registers what follows
checks.py     the configuration, checked before any worker starts
trainer.py    verl's trainers with one method replaced: mini-batches of whole groups, each with its exact gradient
gradient.py   the objective's gradient in each token's log-probability, and the plan of mini-batches; no verl in it
loss.py       the policy loss of the workers, and the advantage estimator
reward.py     our verifier as verl's reward function
"""
