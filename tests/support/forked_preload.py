"""What the children's parent imports, once."""

import pyarrow.parquet  # noqa: F401
import torch  # noqa: F401
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

import realrl.cli  # noqa: F401
import realrl.training  # noqa: F401
