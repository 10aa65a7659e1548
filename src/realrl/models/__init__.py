"""Load models by name: a local folder, a built-in small model, or a model on the hub."""

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
