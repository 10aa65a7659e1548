"""Many runs from one file: each objective, value and seed has a run folder; a few runs at a time, resumable."""

from realrl.sweep.plan import Plan, PlannedRun, load_sweep
from realrl.sweep.run import Progress, run_sweep

__all__ = ["Plan", "PlannedRun", "Progress", "load_sweep", "run_sweep"]
