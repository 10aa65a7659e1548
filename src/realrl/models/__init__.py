"""Models by name: a folder, a built-in small model, or a model of the hub."""

from realrl.models.adapters import Reference
from realrl.models.resolve import (
    adapter_folder,
    layer_shape,
    load_model,
    load_tokenizer,
    resolve_model,
    too_long_for,
    weights_fingerprint,
)

__all__ = [
    "Reference",
    "adapter_folder",
    "layer_shape",
    "load_model",
    "load_tokenizer",
    "resolve_model",
    "too_long_for",
    "weights_fingerprint",
]
