"""Sampling with transformers: prompts prefilled once a group, finished rows leave the batch, draws by inverse CDF."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer

from realrl.errors import ConfigError
from realrl.logprobs import left_pad
from realrl.sampling.base import SamplingParams
from realrl.types import Rollout


class HFSampler:
    """Samples from a transformers causal LM; with a `dtype` other than the model's, from a copy in that dtype.

    Raises ConfigError for a model whose cache cannot be repeated and shortened row by row (sliding windows, states).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype | None = None) -> None:
        layers = DynamicCache(config=model.config).layers
        if not all(type(layer) is DynamicLayer for layer in layers):
            raise ConfigError(
                f"sampling.engine = 'hf' does not support the cache of {model.config.model_type!r} "
                f"({', '.join(sorted({type(layer).__name__ for layer in layers}))}); use a model with full attention"
            )
        self._copied = dtype is not None and dtype != model.dtype
        self._model = model
        if self._copied:
            self._model = copy.deepcopy(model)
            torch.nn.Module.to(self._model, dtype).requires_grad_(False).eval()
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(model, tokenizer)

    def update_weights(self, model: PreTrainedModel) -> None:
        """Take over the weights of the model in training (nothing to do where it is the same module)."""
        if not self._copied:
            return
        with torch.no_grad():
            for own, new in zip(self._model.parameters(), model.parameters(), strict=True):
                own.copy_(new)
            for own, new in zip(self._model.buffers(), model.buffers(), strict=True):
                own.copy_(new)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        params: SamplingParams,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt. The draws of a row do not depend on the other rows or on `batch_rows`.

        With one generator for each rollout its draws depend on that generator alone.
        """
        training = self._model.training
        self._model.eval()
        rollouts: list[Rollout] = []
        prompts_each = max(1, params.batch_rows // group_size)
        try:
            for first in range(0, len(prompts), prompts_each):
                chunk = prompts[first : first + prompts_each]
                rows = slice(first * group_size, (first + len(chunk)) * group_size)
                uniforms = self._uniforms(generator, rows, params.max_new_tokens)
                rollouts += self._decode(chunk, first, group_size, params, uniforms)
        finally:
            self._model.train(training)
        return rollouts

    def _uniforms(self, generator: torch.Generator | Sequence[torch.Generator], rows: slice, length: int) -> Tensor:
        """Uniform draws (R, T) of the rollouts in `rows`."""
        device = self._model.device
        if isinstance(generator, torch.Generator):
            return torch.rand(rows.stop - rows.start, length, generator=generator, device=device)
        return torch.stack([torch.rand(length, generator=own, device=device) for own in generator[rows]])

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[Sequence[int]], first: int, group_size: int, params: SamplingParams, uniforms: Tensor
    ) -> list[Rollout]:
        device, rows = self._model.device, len(prompts) * group_size
        ids, attention = left_pad(prompts, device)
        tokens = torch.zeros(rows, params.max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(rows, params.max_new_tokens, device=device)
        lengths = torch.full((rows,), params.max_new_tokens, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        end_ids = torch.tensor(sorted(self._end_ids), device=device)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        live = torch.arange(rows, device=device)
        repeat = live // group_size
        for step in range(params.max_new_tokens):
            out = self._model(
                input_ids=ids,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1].float()
            if step == 0:
                logits, positions, attention = logits[repeat], positions[repeat], attention[repeat]
                cache.batch_select_indices(repeat)
            drawn, logprob = draw(logits, uniforms[live, step], params)
            tokens[live, step], logprobs[live, step] = drawn, logprob
            done = torch.isin(drawn, end_ids)
            if bool(done.any()):
                lengths[live[done]] = step + 1
                ended[live[done]] = True
                keep = (~done).nonzero().flatten()
                if not len(keep):
                    break
                live, drawn, positions, attention = live[keep], drawn[keep], positions[keep], attention[keep]
                cache.batch_select_indices(keep)
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            attention = torch.cat([attention, attention.new_ones(len(live), 1)], dim=1)
        return [
            self._rollout(first + row // group_size, tokens[row, :length], logprobs[row, :length], not bool(ended[row]))
            for row, length in enumerate(lengths.tolist())
        ]

    def _rollout(self, prompt_index: int, tokens: Tensor, logprobs: Tensor, truncated: bool) -> Rollout:
        ids = tokens.tolist()
        return Rollout(
            prompt_index=prompt_index,
            token_ids=tuple(ids),
            logprobs_sampler=tuple(logprobs.tolist()),
            text=str(self._tokenizer.decode(ids, skip_special_tokens=True)),
            truncated=truncated,
        )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every end token that the model's generation config, its config or the tokenizer names; ConfigError for none."""
    found: set[int] = set()
    named: tuple[Any, ...] = (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    for value in named:
        if value is not None:
            found.update(value if isinstance(value, (list, tuple)) else [value])
    if not found:
        raise ConfigError("neither the model nor its tokenizer names an end token; set eos_token_id in generation_config.json")
    return found


def draw(
    logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"], params: SamplingParams
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Next tokens by inverse CDF at `uniforms`, and their log-probabilities before top-k and top-p.

    The nucleus is the smallest set of most likely tokens that holds `top_p`; the draw is from it, renormalised.
    """
    greedy = params.temperature == 0
    logprobs = (logits if greedy else logits / params.temperature).log_softmax(dim=-1)
    if greedy:
        tokens = logprobs.argmax(dim=-1)
    else:
        probs = _truncate(logprobs.exp(), params)
        # float64: in float32 the tail of a large vocabulary would vanish in the running sum.
        cdf = probs.double().cumsum(dim=-1)
        at = uniforms.double()[:, None] * cdf[:, -1:]
        tokens = torch.searchsorted(cdf, at, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _truncate(probs: Float[Tensor, "R V"], params: SamplingParams) -> Float[Tensor, "R V"]:
    """Probabilities with 0 outside the top-k and the nucleus, not renormalised."""
    if params.top_k and params.top_k < probs.shape[1]:
        values, places = probs.topk(params.top_k, dim=-1)
        probs = torch.zeros_like(probs).scatter(1, places, values)
    if params.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        ordered = torch.where(before < params.top_p * ordered.sum(dim=-1, keepdim=True), ordered, 0)
        probs = torch.zeros_like(probs).scatter(1, order, ordered)
    return probs
