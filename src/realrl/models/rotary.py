"""Rotary embeddings that depend on the longest row of a call, fixed for a run.

transformers' types "longrope" and "dynamic" take other frequencies once a row of the call passes the original length. A short
row would then have other log-probabilities beside a long one than alone.
"""

from __future__ import annotations

from typing import Any

import torch

_FIXED = "fixed by realrl"


def fix_rotary(model: torch.nn.Module, longest: int) -> str | None:
    """Every call from now on takes the frequencies of rows of `longest` tokens, those that are to come.

    Says so, where that changes anything: None where no row can pass the original length.
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
        f"rotary embeddings of type {' and '.join(sorted(found))} depend on the longest row of a call: all rows take those of "
        f"{longest} tokens, the most that prompt and response can have"
    )


def _original_length(module: Any, layer: str | None, kind: str) -> int:
    parameters = module.config.rope_parameters
    if layer is not None:
        parameters = parameters[layer]
    return int(parameters.get("original_max_position_embeddings") or module.original_max_seq_len)
