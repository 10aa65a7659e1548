"""How far a run has come: the counters that a checkpoint stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Progress:
    """The counters of a run, exactly as a checkpoint stores them; the loop alone changes them.

    `rounds`: finished sampling rounds, "step" in the checkpoint. `skipped_updates`: updates that were not finite, of the whole
    run; `bad_in_a_row`: the newest of them without a finite one in between. `evaluation_due`: whether the held-out evaluation
    of the last finished round is still to be made.
    """

    seed: int
    rounds: int = 0
    skipped_updates: int = 0
    bad_in_a_row: int = 0
    evaluation_due: bool = False

    def state(self) -> dict[str, int | bool]:
        """The entries of trainer.json."""
        return {
            "step": self.rounds,
            "seed": self.seed,
            "skipped_updates": self.skipped_updates,
            "bad_in_a_row": self.bad_in_a_row,
            "evaluation_due": self.evaluation_due,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """The progress that trainer.json holds; an older one lacks counters, which were 0 then.

        Raises KeyError, TypeError or ValueError for entries that are not numbers.
        """
        return cls(
            seed=int(state.get("seed", 0)),
            rounds=int(state["step"]),
            skipped_updates=int(state.get("skipped_updates", 0)),
            bad_in_a_row=int(state.get("bad_in_a_row", 0)),
            evaluation_due=bool(state.get("evaluation_due", False)),
        )
