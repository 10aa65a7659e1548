"""A recipe of ours as what another engine runs: a script for TRL, a command for verl.

Nothing of a recipe is silently dropped: each key is an option of the engine (`MAPPED`), has no counterpart there and is named
in the notes where it is set (`LEFT_OUT`), or is refused with the remedy. Neither module imports its engine.
"""

from realrl.integrations.export.common import Export, Machines
from realrl.integrations.export.trl import export_trl
from realrl.integrations.export.verl import export_verl

__all__ = ["Export", "Machines", "export_trl", "export_verl"]
