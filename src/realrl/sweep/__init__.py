"""Many runs from one file: objectives, values and seeds as separate run folders, a few at a time, resumable."""

from realrl.sweep.plan import Plan, PlannedRun, load_sweep
from realrl.sweep.run import Progress, run_sweep

__all__ = ["Plan", "PlannedRun", "Progress", "load_sweep", "run_sweep"]
