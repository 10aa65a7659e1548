"""Sampling with transformers: one prefill a group, finished rows leave, waiting rows enter, draws by inverse CDF."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import Config
from realrl.errors import ConfigError, ModelError, SamplingError
from realrl.models.head import Head, head_of
from realrl.models.modes import evaluating
from realrl.models.tree import common_prefix
from realrl.models.trial import SHORT, alone, reason_of, tolerance_of, trial_prompts
from realrl.sampling.base import SamplingParams
from realrl.sampling.cache import BLOCK, RowCache
from realrl.sampling.weights import whole
from realrl.system.memory import out_of_memory
from realrl.types import Rollout

# Rows whose logits are in memory at the same time.
_LOGITS_ROWS = 128
# Tokens in one block of the inverse CDF: the block is found first, then the token in it.
_CDF_BLOCK = 512
# Waiting prompts enter when one row in this many is free, because every entry copies the cache.
_ENTER_SHARE = 8
# The nucleus is searched in this many most likely tokens before the whole vocabulary is sorted.
_NUCLEUS = 1024


class HFSampler:
    """Samples from a causal LM of transformers, or from a copy of it with `copy` or another `dtype` than the model's.

    The cache is tried before it is used, on rows of up to `longest` tokens. Raises ModelError for a model that samples
    differently with this cache than without it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype | None = None,
        copy: bool = False,
        longest: int = SHORT,
    ) -> None:
        self._copied = copy or (dtype is not None and dtype != model.dtype)
        self._model = model
        if self._copied:
            self._model = deepcopy(model)
            torch.nn.Module.to(self._model, dtype).requires_grad_(False).eval()
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(model, tokenizer)
        self._checked = 0
        self.check(longest)

    @classmethod
    def of_recipe(
        cls, config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, longest_prompt: int, copy: bool
    ) -> HFSampler:
        """The sampler of a recipe; see `build_sampler`."""
        sampling = config.sampling
        dtype = None if sampling.dtype == "same" else torch.bfloat16
        return cls(model, tokenizer, dtype=dtype, copy=copy, longest=longest_prompt + sampling.max_new_tokens)

    @torch.no_grad()
    def update_weights(self, model: PreTrainedModel) -> None:
        """Copy the trained weights and the buffers; nothing to do if the sampler uses the model in training itself.

        Sharded parameters are gathered one at a time: every rank must call this.
        """
        if not self._copied:
            return
        for own, new in zip(self._model.parameters(), model.parameters(), strict=True):
            if new.requires_grad:
                own.copy_(whole(new))
        for own, new in zip(self._model.buffers(), model.buffers(), strict=True):
            own.copy_(whole(new))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        on_finished: Callable[[int, Rollout], None] | None = None,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt; see `Sampler`."""
        rollouts: dict[int, Rollout] = {}
        for finished in self.stream(prompts, sizes=[group_size] * len(prompts), params=params, seeds=seeds):
            for index, rollout in finished:
                rollouts[index] = rollout
                if on_finished is not None:
                    on_finished(index, rollout)
        return [rollouts[index] for index in range(len(seeds))]

    def stream(
        self, prompts: Sequence[Sequence[int]], *, sizes: Sequence[int], params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[list[tuple[int, Rollout]]]:
        """`sizes[p]` rollouts of prompt p as they finish, each with its place in the order by prompt, then by sample."""
        if len(seeds) != sum(sizes):
            raise ValueError(f"got {len(seeds)} seeds for {sum(sizes)} rollouts; every rollout needs its own seed")
        try:
            self.check(max(map(len, prompts), default=0) + params.max_new_tokens)
            with evaluating(self._model):
                yield from self._decode(prompts, sizes, params, seeds)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0][:200]
            raise SamplingError(
                f"out of memory while sampling up to {min(len(seeds), params.batch_rows)} responses of up to "
                f"{params.max_new_tokens} tokens together ({reason}); lower sampling.batch_rows (--batch-rows) or "
                "sampling.max_new_tokens"
            ) from error

    def check(self, longest: int) -> None:
        """Check that the cache gives the log-probabilities of plain passes, on rows of up to `longest` tokens.

        Runs once, and again for longer rows. Raises ModelError if it does not.
        """
        if longest <= self._checked:
            return
        params = SamplingParams(temperature=1.0, max_new_tokens=8, batch_rows=3)
        prompts = trial_prompts(self._model, max(longest - params.max_new_tokens, SHORT))
        tolerance = tolerance_of(self._model)
        try:
            with evaluating(self._model):
                rollouts = [one for done in self._decode(prompts, [2, 1], params, range(3)) for _, one in done]
        except Exception as error:
            if out_of_memory(error):
                raise
            raise self._unfit(reason_of(error)) from error
        wanted = torch.cat([alone(self._model, prompts[one.prompt_index], one.token_ids) for one in rollouts])
        off = torch.tensor([value for one in rollouts for value in one.logprobs_sampler], device=wanted.device) - wanted
        if bool(wanted.isfinite().all()) and not bool(off.square().mean().sqrt() <= tolerance):
            raise self._unfit(f"log-probabilities differ by up to {float(off.abs().max()):.2g} nats from those of plain passes")
        self._checked = longest

    def _unfit(self, reason: str) -> ModelError:
        return ModelError(
            f"sampling.engine = 'hf' cannot sample exactly from {type(self._model).__name__} with its cache ({reason}); use a "
            "model whose layers all have full or sliding-window attention, or sampling.engine = 'vllm'"
        )

    def _decode(
        self, prompts: Sequence[Sequence[int]], sizes: Sequence[int], params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[list[tuple[int, Rollout]]]:
        waiting, most = _groups(prompts, sizes, params.batch_rows, seeds), min(len(seeds), params.batch_rows)
        rows = _Rows(self._model, params, self._end_ids, most, common_prefix([tuple(prompt) for prompt in prompts]))
        while waiting or rows.groups:
            free = params.batch_rows - len(rows.groups)
            if waiting and len(waiting[0].seeds) <= free and _ENTER_SHARE * free >= params.batch_rows:
                entering = []
                while waiting and len(waiting[0].seeds) <= free:
                    entering.append(waiting.popleft())
                    free -= len(entering[-1].seeds)
                rows.enter(entering)
            else:
                rows.step()
            if finished := rows.finished():
                yield [self._rollout(*one) for one in finished]

    def _rollout(self, index: int, prompt_index: int, tokens: list[int], logprobs: list[float]) -> tuple[int, Rollout]:
        return index, Rollout(
            prompt_index=prompt_index,
            token_ids=tuple(tokens),
            logprobs_sampler=tuple(logprobs),
            text=str(self._tokenizer.decode(tokens, skip_special_tokens=True)),
            truncated=tokens[-1] not in self._end_ids,
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """Rollouts of one prompt that enter together, one for each seed; `first` is the place of the first one."""

    prompt_index: int
    prompt: Sequence[int]
    first: int
    seeds: Sequence[int]


def _groups(prompts: Sequence[Sequence[int]], sizes: Sequence[int], most: int, seeds: Sequence[int]) -> deque[_Group]:
    """The rollouts of each prompt, in groups of at most `most`."""
    groups: deque[_Group] = deque()
    first = 0
    for index, (prompt, size) in enumerate(zip(prompts, sizes, strict=True)):
        for start in range(first, first + size, most):
            groups.append(_Group(index, prompt, start, seeds[start : min(start + most, first + size)]))
        first += size
    return groups


class _Rows:
    """The running rows. Row i of every tensor and of the cache is one rollout; the first `len(self.groups)` rows are in use.

    Every row ends at the cache's last column, so it is padded on the left. The first `common` tokens, which all prompts share,
    are prefilled once.
    """

    def __init__(self, model: PreTrainedModel, params: SamplingParams, end_ids: set[int], rows: int, common: int) -> None:
        device, length = model.device, params.max_new_tokens
        self._model, self._params, self._head = model, params, head_of(model)
        self._end_ids = torch.tensor(sorted(end_ids), device=device)
        # The group of each row, and its place in the order of all rollouts.
        self.groups: list[_Group] = []
        self._places: list[int] = []
        self._tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, length, device=device)
        self._uniforms = torch.zeros(rows, length, device=device)
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._starts = torch.zeros(rows, dtype=torch.long, device=device)
        self._cache = RowCache(model.config, min(BLOCK, length))
        self._common = common
        self._start: RowCache | None = None
        self._attention: Tensor | None = None
        self._logits: Tensor | None = None

    @torch.no_grad()
    def enter(self, groups: Sequence[_Group]) -> None:
        """Prefill the prompts and draw the first token of each of their rollouts."""
        device, old = self._model.device, len(self.groups)
        sizes = torch.tensor([len(group.seeds) for group in groups], device=device)
        repeat = torch.arange(len(groups), device=device).repeat_interleave(sizes)
        lengths = torch.tensor([len(group.prompt) for group in groups], device=device)
        prompts, hidden = self._prefill([group.prompt for group in groups], lengths)
        self.groups += [group for group in groups for _ in group.seeds]
        self._places += [group.first + sample for group in groups for sample in range(len(group.seeds))]
        new, width = slice(old, len(self.groups)), self._cache.get_seq_length()
        drop = int(self._starts[:old].min()) if old else 0
        self._cache.admit(prompts, repeat, drop)
        self._lengths[new] = 0
        self._positions[new, 0] = lengths[repeat]
        self._starts[:old] += self._cache.get_seq_length() - width
        self._starts[new] = self._cache.get_seq_length() - self._positions[new, 0]
        uniforms = [
            torch.rand(self._tokens.shape[1], generator=torch.Generator().manual_seed(s)) for g in groups for s in g.seeds
        ]
        self._uniforms[new] = torch.stack(uniforms).to(device)
        columns = torch.arange(self._cache.get_seq_length() + self._tokens.shape[1], device=device)
        counts = columns >= self._starts[: new.stop, None]
        self._attention = None if bool(counts.all()) else counts
        self._take(new, hidden[repeat])

    def _prefill(self, prompts: Sequence[Sequence[int]], lengths: Int[Tensor, " P"]) -> tuple[RowCache, Tensor]:
        """Keys and values of the prompts, each ending at the last column, and the hidden states of their last tokens."""
        device, common = self._model.device, self._common
        if common and self._start is None:
            self._start = RowCache(self._model.config, 0)
            ids = torch.tensor([prompts[0][:common]], device=device)
            self._forward(ids, None, torch.arange(common, device=device)[None], self._start)
        cache = self._start.repeated(len(prompts)) if self._start else RowCache(self._model.config, 0)
        # Padding on the right needs no mask: attention is causal.
        rests = [torch.tensor(prompt[common:], dtype=torch.long) for prompt in prompts]
        ids = torch.nn.utils.rnn.pad_sequence(rests, batch_first=True).to(device)
        positions = torch.arange(common, common + ids.shape[1], device=device)[None].expand_as(ids)
        hidden = self._forward(ids, None, positions, cache, lengths - common - 1)
        cache.push_right(common + ids.shape[1] - lengths)
        return cache, hidden

    @torch.no_grad()
    def step(self) -> None:
        """Draw the next token of every row."""
        rows = slice(0, len(self.groups))
        ids = self._tokens[rows].gather(1, self._lengths[rows, None] - 1)
        attention = None if self._attention is None else self._attention[rows, : self._cache.get_seq_length() + 1]
        hidden = self._forward(ids, attention, self._positions[rows], self._cache)
        self._positions[rows] += 1
        self._take(rows, hidden)

    def finished(self) -> list[tuple[int, int, list[int], list[float]]]:
        """Remove the finished rows, as (place, prompt, tokens, log-probabilities). Other rows move into the gaps."""
        rows = len(self.groups)
        lengths = self._lengths[:rows]
        last = self._tokens[:rows].gather(1, lengths[:, None] - 1)
        ended = ((last == self._end_ids).any(dim=1) | (lengths == self._tokens.shape[1])).nonzero().flatten().tolist()
        if not ended:
            return []
        found = []
        for row in ended:
            length = int(lengths[row])
            values = self._tokens[row, :length].tolist(), self._logprobs[row, :length].tolist()
            found.append((self._places[row], self.groups[row].prompt_index, *values))
        stay = rows - len(ended)
        gone = set(ended)
        targets = [row for row in ended if row < stay]
        sources = [row for row in range(stay, rows) if row not in gone]
        for target, source in zip(targets, sources, strict=True):
            self.groups[target], self._places[target] = self.groups[source], self._places[source]
        del self.groups[stay:], self._places[stay:]
        to, of = (torch.tensor(rows, dtype=torch.long, device=lengths.device) for rows in (targets, sources))
        state = [self._tokens, self._logprobs, self._uniforms, self._lengths, self._positions, self._starts]
        for tensor in state if self._attention is None else [*state, self._attention]:
            tensor[to] = tensor[of]
        self._cache.move(of, to, stay)
        return found

    def _forward(
        self, ids: Tensor, attention: Tensor | None, positions: Tensor, cache: RowCache, at: Int[Tensor, " R"] | None = None
    ) -> Tensor:
        """Hidden states (R, H) at position `at` of each row, by default the last; logits (R, V) if the head is unknown."""
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": attention,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }
        if at is None:
            at = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        if self._head is None:
            places, at = at.unique(return_inverse=True)
            states = self._model(**inputs, logits_to_keep=places).logits
        else:
            states = self._model.base_model(**inputs).last_hidden_state
        return states[torch.arange(len(ids), device=ids.device), at]

    def _take(self, rows: slice, hidden: Tensor) -> None:
        """Draw the next token of these rows from their hidden states."""
        steps = self._lengths[rows, None]
        uniforms = self._uniforms[rows].gather(1, steps)[:, 0]
        parts = [
            draw(self._logits_of(states), at, self._params)
            for states, at in zip(hidden.split(_LOGITS_ROWS), uniforms.split(_LOGITS_ROWS), strict=True)
        ]
        tokens, logprobs = (torch.cat(values)[:, None] for values in zip(*parts, strict=True))
        self._tokens[rows].scatter_(1, steps, tokens)
        self._logprobs[rows].scatter_(1, steps, logprobs)
        self._lengths[rows] += 1

    def _logits_of(self, hidden: Tensor) -> Float[Tensor, "R V"]:
        """Logits in float32. Their memory is used again at every token if the head allows it."""
        head = self._head
        if head is None:
            return hidden.float()
        if not _plain(head, hidden):
            return head.logits(hidden)
        if self._logits is None:
            self._logits = hidden.new_empty(min(_LOGITS_ROWS, len(self._tokens)), len(head.weight))
        return self._logits[: len(hidden)].addmm_(hidden, head.weight.T, beta=0, alpha=head.scale)


def _plain(head: Head, hidden: Tensor) -> bool:
    """Whether the head computes its logits with one product in float32."""
    return (
        head.bias is None
        and head.softcap is None
        and hidden.dtype == head.weight.dtype == torch.float32
        and not torch.is_autocast_enabled(hidden.device.type)
    )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every end token that the model's generation config, its config or the tokenizer names. Raises ConfigError for none."""
    found: set[int] = set()
    named: tuple[Any, ...] = (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
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
    """Next tokens by inverse CDF at `uniforms`, and their log-probabilities before top-k and top-p. Overwrites `logits`.

    The nucleus is the smallest set of most likely tokens with a probability of `top_p` together.
    """
    if params.temperature == 0:
        tokens = logits.argmax(dim=-1)
        probs = torch.softmax(logits, dim=-1, out=logits)
    else:
        if params.temperature != 1:
            logits.div_(params.temperature)
        probs = torch.softmax(logits, dim=-1, out=logits)
        tokens = _at(_truncate(probs, params), uniforms)
    return tokens, probs.gather(1, tokens[:, None])[:, 0].log()


def _at(probs: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The first token at which the running sum of `probs` exceeds the share `uniforms` of the total.

    Sums are in float64, in which the tail of a large vocabulary is not lost (Apple's MPS has only float32): first over blocks,
    then inside one block.
    """
    exact = torch.float32 if probs.device.type == "mps" else torch.float64
    vocabulary, shares = probs.shape[1], uniforms.to(exact)[:, None]
    if vocabulary <= 4 * _CDF_BLOCK:
        return _search(probs.to(exact).cumsum(dim=-1), shares)[:, 0]
    whole = vocabulary - vocabulary % _CDF_BLOCK
    sums = probs[:, :whole].unflatten(1, (-1, _CDF_BLOCK)).sum(dim=-1)
    if whole < vocabulary:
        sums = torch.cat([sums, probs[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    ends = sums.to(exact).cumsum(dim=-1)
    block = _search(ends, shares)
    mass = sums.gather(1, block).to(exact)
    shares = (1 - (ends.gather(1, block) - shares * ends[:, -1:]) / mass).clamp(0, 1)
    ids = block * _CDF_BLOCK + torch.arange(_CDF_BLOCK, device=probs.device)
    inside = probs.gather(1, ids.clamp(max=vocabulary - 1)).masked_fill(ids >= vocabulary, 0)
    token = _search(inside.to(exact).cumsum(dim=-1), shares)
    return (block * _CDF_BLOCK + token).clamp(max=vocabulary - 1)[:, 0]


def _search(ends: Float[Tensor, "R B"], shares: Float[Tensor, "R 1"]) -> Int[Tensor, "R 1"]:
    """The index at which the running sum `ends` exceeds the share of its total; never an item with weight 0."""
    # Rounding must not reach the total itself, after which there is no item. The NaN of a diverged model does reach it.
    at = (shares * ends[:, -1:]).clamp(max=ends[:, -1:] * (1 - 4 * torch.finfo(ends.dtype).eps))
    return torch.searchsorted(ends, at, right=True).clamp(max=ends.shape[1] - 1)


def _truncate(probs: Float[Tensor, "R V"], params: SamplingParams) -> Float[Tensor, "R V"]:
    """Probabilities with 0 outside the top-k and the nucleus; not renormalised."""
    if params.top_k and params.top_k < probs.shape[1]:
        values, places = probs.topk(params.top_k, dim=-1)
        probs = torch.zeros_like(probs).scatter_(1, places, values)
    if params.top_p < 1:
        wanted = params.top_p * probs.sum(dim=-1, keepdim=True)
        ordered, order = probs.topk(min(_NUCLEUS, probs.shape[1]), dim=-1)
        if bool((ordered.sum(dim=-1, keepdim=True) < wanted).any()):
            ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        probs = torch.zeros_like(probs).scatter_(1, order, torch.where(before < wanted, ordered, 0))
    return probs
