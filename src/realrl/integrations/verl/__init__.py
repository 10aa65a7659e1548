"""Our objectives and verifier inside verl's own trainer: `trainer.v1.trainer_mode=real_sync` (docs/scale_out.md).

plugin.py     verl loads it in every process; it registers the parts below
checks.py     checks the configuration before any worker starts
trainer.py    verl's trainers with another update: mini-batches of whole groups, each with its exact gradient
gradient.py   mini-batches of whole groups; free of verl
loss.py       the policy loss of the workers, and the advantage estimator
reward.py     our verifier as verl's reward function
late.py       calls a function after the first import of a module
"""
