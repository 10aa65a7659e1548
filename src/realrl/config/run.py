"""Section `[run]`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, field_validator

from realrl.config.section import Section

# Bytes in one part of a path. File systems allow 255, and some parts are written with a suffix.
_MAX_NAME = 200


class RunSection(Section):
    """Where the run is written, and its seed."""

    dir: str = Field(default="runs/run", description="the run folder")
    seed: int = Field(default=0, description="seed of every random draw: samples, order of problems, adapters")
    threads: int = Field(default=0, ge=0, le=4096, description="CPU threads of torch; 0: torch's own choice")

    @field_validator("dir")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if (
            not value.strip()
            or not value.isprintable()
            or any(len(os.fsencode(part)) > _MAX_NAME for part in Path(value).parts)
        ):
            raise ValueError(
                f"not a usable folder name; give a path without control characters, each part of at most {_MAX_NAME} bytes"
            )
        return value
