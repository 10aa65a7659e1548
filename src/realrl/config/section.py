"""What every section of a recipe shares: its base class and the types of its numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: frozen, without unknown keys, and without the numbers NaN and infinity, also given as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


PositiveInt = Annotated[int, Field(gt=0)]
# For numbers of things that are in memory together: a typing error must not fill the machine's memory.
Count = Annotated[int, Field(gt=0, le=2**20)]
