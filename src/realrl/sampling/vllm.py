"""Sampling with vLLM (continuous batching), for training and evaluation."""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realrl.config import Config
from realrl.errors import ConfigError, SamplingError
from realrl.models import adapter_folder, resolve_model
from realrl.sampling.base import EngineOptions, SamplingParams, TextRequest, TextResponse
from realrl.sampling.hf import end_token_ids
from realrl.sampling.weights import merged_weights
from realrl.types import Rollout

# Tokens in a block of vLLM's KV cache on CPU. Only whole blocks of a prompt are shared.
_CPU_BLOCK = 128


class VLLMEngine:
    """An in-process vLLM engine for evaluation.

    Raises ConfigError if vLLM is not installed or cannot load the model, and for an adapter without its base model.
    """

    def __init__(self, options: EngineOptions) -> None:
        folder = resolve_model(options.model)
        if adapter_folder(folder):
            raise ConfigError(f"{options.model} holds only an adapter, and --engine vllm needs a whole model; use --engine hf")
        self._params = options.params
        self._engine = _start(
            model=folder,
            dtype=options.dtype,
            max_model_len=options.longest_prompt + options.params.max_new_tokens,
            max_num_seqs=options.params.batch_rows,
            seed=options.seed,
        )

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses in the order in which they finish. Raises SamplingError if the engine fails."""
        for index, request in enumerate(requests):
            wanted = _vllm_params(self._params, seed=request.seed)
            self._engine.add_request(str(index), {"prompt_token_ids": list(request.token_ids)}, wanted)
        while self._engine.has_unfinished_requests():
            done = [output for output in _step(self._engine) if output.finished]
            if done:
                yield [(int(output.request_id), _response(output.outputs[0])) for output in done]

    def close(self) -> None:
        """Nothing to close: the engine ends with the process."""


class VLLMSampler:
    """Samples rollouts for training with an engine in this process, which holds a copy of the model's weights in `dtype`.

    Every rollout is its own request with its own seed. The rollouts of a prompt share its prefill through the prefix cache.

    `max_model_len`: tokens of prompt and response together. `batch_rows`: maximum rows decoded together; the value in the
    sampling parameters has no effect. `gpu_memory`: share of the GPU's memory for weights and KV cache; on CPU the largest
    share of the main memory for the KV cache. `sleep`: free the GPU memory between two uses and keep the weights in main
    memory; no effect on CPU. `cuts`: whether top-k or top-p will be used.

    Raises ConfigError if vLLM is not installed or cannot run the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype,
        max_model_len: int,
        batch_rows: int,
        gpu_memory: float = 0.4,
        seed: int = 0,
        sleep: bool = False,
        cuts: bool = False,
    ) -> None:
        cuda = torch.cuda.is_available()
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(model, tokenizer)
        self._dtype = dtype
        self._max_model_len = max_model_len
        self._sleeps = sleep and cuda
        self._asleep = False
        if cuts:
            # In the newer runner there is no place to read log-probabilities before the cut.
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        self._folder = tempfile.TemporaryDirectory(prefix="realrl-vllm-")
        _write_config(model, self._folder.name)
        options: dict[str, Any] = {"gpu_memory_utilization": gpu_memory} if cuda else {}
        if not cuda:
            options["kv_cache_memory_bytes"] = _kv_bytes(model, dtype, batch_rows, max_model_len, gpu_memory)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # Every rank has its own engine, which must not start another process group.
            options["distributed_executor_backend"] = "external_launcher"
        self._engine = _start(
            model=self._folder.name,
            # The weights are copied from the model in training.
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=max_model_len,
            max_num_seqs=batch_rows,
            # Log-probabilities of the logits divided by the temperature.
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            enable_sleep_mode=self._sleeps,
            seed=seed,
            **options,
        )
        self._cuts = cuts
        if cuts and not all(self._engine.collective_rpc(_report_before_cut)):
            raise ConfigError(
                "this model runner of vLLM reports log-probabilities after top-p and top-k; set VLLM_USE_V2_MODEL_RUNNER=0, "
                "or sample with top_p = 1 and top_k = 0"
            )
        self.update_weights(model)

    @classmethod
    def of_recipe(
        cls, config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, longest_prompt: int, copy: bool
    ) -> VLLMSampler:
        """The sampler of a recipe; see `build_sampler`. It always copies the weights."""
        sampling = config.sampling
        if not 0.01 <= sampling.temperature <= 2:
            raise ConfigError(
                f"sampling.temperature = {sampling.temperature}: vLLM takes 0.01 to 2; change it, or set sampling.engine = 'hf'"
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # A generated task can still produce longer prompts than those seen so far.
        length = config.data.max_prompt_tokens + sampling.max_new_tokens
        return cls(
            model,
            tokenizer,
            dtype=model.dtype if sampling.dtype == "same" else torch.bfloat16,
            max_model_len=min(length, positions or length),
            batch_rows=sampling.batch_rows,
            gpu_memory=sampling.gpu_memory,
            seed=config.run.seed,
            sleep=sampling.sleep,
            cuts=sampling.top_p < 1 or sampling.top_k > 0 or (config.eval.top_p or 1) < 1,
        )

    def update_weights(self, model: PreTrainedModel) -> None:
        """Copy the weights of the model in training into the engine, adapters merged, and clear the prefix cache.

        Raises ConfigError if a parameter of vLLM's model gets no weights.
        """
        self._wake()
        # vLLM warns about every layer without weights, such as rotary embeddings.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        weights = ((name, tensor.to(self._dtype)) for name, tensor in merged_weights(model))
        (missing,) = self._engine.collective_rpc(_reload, args=(weights,))
        if missing:
            raise ConfigError(
                f"vLLM found no new weights for {', '.join(sorted(missing)[:3])} ({len(missing)} in total) in "
                f"{type(model).__name__}; use sampling.engine = 'hf'"
            )
        self._engine.apply_model(_refresh_tied_head)
        self._engine.reset_prefix_cache()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        on_finished: Callable[[int, Rollout], None] | None = None,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt; see `Sampler`.

        Raises ValueError for a wrong number of seeds, a prompt that leaves no room for `max_new_tokens`, and top-p or top-k
        in a sampler made without `cuts`; SamplingError if the engine fails.
        """
        self._check(prompts, group_size, params, seeds)
        rollouts: dict[int, Rollout] = {}
        self._wake()
        try:
            # vLLM also draws from torch's global generators; the trainer's draws must not change.
            with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
                for index, seed in enumerate(seeds):
                    prompt = {"prompt_token_ids": list(prompts[index // group_size])}
                    self._engine.add_request(str(index), prompt, self._request(params, seed))
                while self._engine.has_unfinished_requests():
                    for output in _step(self._engine):
                        if output.finished:
                            index = int(output.request_id)
                            rollouts[index] = self._rollout(index // group_size, output.outputs[0])
                            if on_finished is not None:
                                on_finished(index, rollouts[index])
        except SamplingError:
            # A failed engine cannot be used again, so its requests are not aborted.
            raise
        except BaseException:
            self._engine.abort_request([str(index) for index in range(len(seeds)) if index not in rollouts])
            self._sleep()
            raise
        self._sleep()
        return [rollouts[index] for index in range(len(seeds))]

    def _check(self, prompts: Sequence[Sequence[int]], group_size: int, params: SamplingParams, seeds: Sequence[int]) -> None:
        if len(seeds) != len(prompts) * group_size:
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts × {group_size} rollouts; each needs its own seed")
        longest = max(map(len, prompts), default=0)
        # vLLM would end the response at its limit without a warning.
        if longest + params.max_new_tokens > self._max_model_len:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens = {params.max_new_tokens} are more than the engine's limit "
                f"of {self._max_model_len} tokens; raise data.max_prompt_tokens, or lower sampling.max_new_tokens"
            )
        if (params.top_p < 1 or params.top_k) and not self._cuts:
            raise ValueError(f"top_p = {params.top_p} and top_k = {params.top_k} need a sampler with cuts = True")

    def _request(self, params: SamplingParams, seed: int) -> Any:
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        return _vllm_params(
            params,
            seed=seed,
            logprobs=0,
            detokenize=False,
            stop_token_ids=sorted(self._end_ids),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _rollout(self, prompt_index: int, output: Any) -> Rollout:
        ids = list(output.token_ids)
        return Rollout(
            prompt_index=prompt_index,
            token_ids=tuple(ids),
            logprobs_sampler=tuple(step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)),
            text=str(self._tokenizer.decode(ids, skip_special_tokens=True)),
            truncated=ids[-1] not in self._end_ids,
        )

    def _wake(self) -> None:
        if self._asleep:
            # The engine needs the memory that the trainer's allocator keeps in reserve.
            torch.cuda.empty_cache()
            self._engine.wake_up()
            self._asleep = False

    def _sleep(self) -> None:
        if self._sleeps:
            self._engine.reset_prefix_cache()
            self._engine.sleep(level=1)
            self._asleep = True


def _start(**arguments: Any) -> Any:
    """An in-process engine from the arguments of vLLM's EngineArgs. Raises ConfigError if vLLM is missing or refuses them."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"the engine vllm needs vLLM, which cannot be imported ({error}); pip install 'realrl[vllm]', or use the engine hf"
        ) from error
    cuda = torch.cuda.is_available()
    # On CPU, vLLM replaces this function by one that does nothing, and it sets variables that ranks and child processes read.
    set_num_threads = torch.set_num_threads
    variables = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LD_PRELOAD")}
    try:
        return LLMEngine.from_engine_args(
            EngineArgs(
                # On CPU, vLLM fails if a seeded request's prompt is prefilled in chunks, and compiling takes too long.
                enable_chunked_prefill=cuda,
                enforce_eager=not cuda,
                disable_log_stats=True,
                **arguments,
            )
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(f"vLLM cannot run {arguments['model']!r}: {_reason(error)}") from error
    finally:
        torch.set_num_threads = set_num_threads
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _step(engine: Any) -> list[Any]:
    """One step of the engine. Raises SamplingError for any error: a failed engine cannot be used again in this process."""
    try:
        return engine.step()
    except Exception as error:
        raise SamplingError(
            f"vLLM failed while sampling: {type(error).__name__}: {_reason(error)}. Start again: train continues from its last "
            "checkpoint with --resume, eval with the same command. If memory ran out, lower sampling.gpu_memory or batch_rows"
        ) from error


def _reason(error: Exception) -> str:
    """One line of the error. For pydantic its first fault, because the first line only counts faults."""
    text = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def _vllm_params(params: SamplingParams, **more: Any) -> Any:
    from vllm import SamplingParams as VLLMParams  # pyright: ignore[reportMissingImports]

    return VLLMParams(
        temperature=params.temperature, top_p=params.top_p, top_k=params.top_k, max_tokens=params.max_new_tokens, **more
    )


def _write_config(model: PreTrainedModel, folder: str) -> None:
    """Write the model's config.json for vLLM: with the name of its class, and without quantisation, as weights come plain."""
    config: Any = copy.deepcopy(model.config)
    if not config.architectures:
        # FSDP2 puts its own class in front.
        config.architectures = [next(c.__name__ for c in type(model).__mro__ if not c.__name__.startswith("FSDP"))]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)


def _kv_bytes(model: PreTrainedModel, dtype: torch.dtype, rows: int, length: int, share: float) -> int:
    """Bytes of the KV cache of `rows` full rows in whole blocks, at most `share` of the main memory."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = (rows + 1) * math.ceil(length / _CPU_BLOCK) * _CPU_BLOCK
    wanted = tokens * config.num_hidden_layers * 2 * heads * width * dtype.itemsize
    return min(wanted, int(share * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def _report_before_cut(worker: Any) -> bool:
    """Make a worker's sampler report log-probabilities before top-k and top-p; False if that is not possible."""
    cut: Any = getattr(getattr(worker.model_runner, "sampler", None), "topk_topp_sampler", None)
    if cut is None:
        return False
    forward = cut.forward
    # Log-probabilities after the cut need not be computed.
    cut.logprobs_mode = "raw_logprobs"

    def draw(logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        return forward(logits, *rest)[0], logprobs

    cut.forward = draw
    return True


def _reload(worker: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
    """Replace a worker's weights by `weights`; returns the names of parameters that got none."""
    model = worker.get_model()
    names = {name for name, _ in model.named_parameters()}
    load = model.load_weights
    loaded: set[str] = set()

    def recording(weights: Any) -> set[str]:
        loaded.update(load(weights))
        return loaded

    # vLLM itself only logs missing weights.
    model.load_weights = recording
    try:
        worker.reload_weights(weights_iterator=weights)
    finally:
        del model.load_weights
    return names - loaded


def _refresh_tied_head(model: Any) -> None:
    """Update the head on CPU: there it is a packed copy, which vLLM's weight update skips if it is tied to the embedding."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(model.config, "tie_word_embeddings", False) and hasattr(head, "tie_weights"):
        model.lm_head = head.tie_weights(model.model.embed_tokens)
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _response(output: Any) -> TextResponse:
    return TextResponse(output.text, len(output.token_ids), output.finish_reason == "length")
