"""Export a recipe to another engine: a script for TRL, a launch command for verl.

Each engine has one `TABLE` with a row for every recipe key. The row says which option the key becomes, what the engine does
differently, or why the engine refuses it. The options, the notes and the refusals are made from this table, and a test checks
that no key is missing. Neither module imports its engine.
"""

from realrl.integrations.export.common import Export, Machines
from realrl.integrations.export.trl import export_trl
from realrl.integrations.export.verl import export_verl

__all__ = ["Export", "Machines", "export_trl", "export_verl"]
