"""Fix rotary embeddings that depend on the longest row of a call.

transformers' types "longrope" and "dynamic" change their frequencies if a row of the call is longer than the original length.
A short row would then have different log-probabilities next to a long row than alone.
"""

from __future__ import annotations

from typing import Any

import torch

_FIXED = "fixed by realrl"


def fix_rotary(model: torch.nn.Module, longest: int) -> str | None:
    """Make all later calls use the frequencies for rows of `longest` tokens.

    Returns a notice for the user, or None if no row can be longer than the original length and nothing changes.
    """
    found: set[str] = set()
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "rope_type")]
    for module in modules:
        kinds: Any = module.rope_type
        for layer, kind in list(kinds.items()) if isinstance(kinds, dict) else [(None, kinds)]:
            if not ("dynamic" in kind or kind == "longrope") or longest <= _original_length(module, layer, kind):
                continue
            found.add(kind)
            last = torch.tensor([[longest - 1]], device=model.device)  # pyright: ignore[reportArgumentType]
            probe = torch.zeros(1, 1, 1, device=last.device)
            module(probe, last, *([layer] if layer else []))
            module.rope_type = {**kinds, layer: _FIXED} if layer else _FIXED
            kinds = module.rope_type
    if not found:
        return None
    return (
        f"rotary embeddings of type {' and '.join(sorted(found))} depend on the longest row of a call: all rows now use those "
        f"for {longest} tokens, the longest that prompt and response can be together"
    )


def _original_length(module: Any, layer: str | None, kind: str) -> int:
    parameters = module.config.rope_parameters
    if layer is not None:
        parameters = parameters[layer]
    return int(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)
