"""Section `[model]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from realrl.config.section import PositiveInt, Section


class LoraSection(Section):
    """Low-rank adapters beside frozen weights: W + (alpha / rank) B A."""

    rank: int = Field(default=16, gt=0, le=8192, description="rank of B A in W + (alpha / rank) B A")
    alpha: PositiveInt = Field(default=32, description="scale of B A in W + (alpha / rank) B A")
    dropout: float = Field(default=0.0, description="must be 0: two passes of the same weights must give the same values")
    targets: str | tuple[str, ...] = Field(
        default="all-linear",
        description='layers that get adapters: "all-linear" (every linear layer except the head), a regular expression, or a '
        "list of names",
    )

    @model_validator(mode="after")
    def _no_dropout(self) -> LoraSection:
        if self.dropout:
            raise ValueError(
                f"with dropout = {self.dropout}, two passes of the same weights give different log-probabilities, so the "
                "log-ratio of an unchanged policy is not 0; set dropout = 0.0 (a lower rank or lr also regularises)"
            )
        return self


class ModelSection(Section):
    """The model, its precision and its device."""

    path: str = Field(
        description="a folder written by `save_pretrained`, a checkpoint of a run, a hub name, or a built-in model: "
        "`tiny-adder`, `smollm2-135m`"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description='type of the weights: "float32"; "bfloat16", together with `optim.master_weights = true`; or "auto": '
        "bfloat16 if it is faster on this machine and no update is lost (with LoRA or master weights)",
    )
    autocast: Literal["auto", "none", "bfloat16"] = Field(
        default="none",
        description='type of matrix products in training: "none" uses the type of the weights; "bfloat16" computes products in '
        'bfloat16 and keeps the weights; "auto": bfloat16 if it is faster',
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description='"cpu", "cuda", "mps", or "auto": CUDA if available, otherwise Apple\'s MPS, otherwise the CPU',
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = Field(
        default="auto",
        description='attn_implementation of transformers: "eager", "sdpa", "flash_attention_2", "flex_attention", or "auto": '
        "the choice of transformers",
    )
    compile: bool = Field(default=False, description="compile the model with `torch.compile`")
    gradient_checkpointing: bool = Field(default=False, description="save memory at the cost of one more forward pass")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with a model of the hub")
    lora: LoraSection | None = Field(
        default=None, description="train only low-rank adapters, e.g. `lora = { rank = 16 }`; absent: train every weight"
    )
    quantize: Literal["none", "4bit"] = Field(
        default="none", description='"4bit": keep the frozen weights under LoRA in 4 bits (QLoRA)'
    )
    offload_reference: bool = Field(default=False, description="keep the reference model in main memory while it is not used")

    @model_validator(mode="after")
    def _quantised_weights_are_frozen(self) -> ModelSection:
        if self.quantize != "none" and self.lora is None:
            raise ValueError(
                f"quantize = {self.quantize!r} freezes the weights, so training needs adapters; add lora = {{ rank = 16 }}, or "
                "set quantize = 'none'"
            )
        return self
