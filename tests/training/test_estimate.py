"""Counts of operations and memory before a run, against what real models do."""

import json
import math
import shutil

import pytest
import torch
from batches import batch_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from realrl.config import parse_config
from realrl.errors import ConfigError
from realrl.models.head import head_of
from realrl.models.logprobs import layout_of, response_logprobs
from realrl.models.shape import Shape, meta_model
from realrl.sampling import SamplingParams
from realrl.sampling.hf import HFSampler
from realrl.system.hardware import Rates, Speed
from realrl.training.estimate import Lengths, backward_work, evaluations, forward_work, run_seconds, sampling_work
from realrl.training.footprint import activation_bytes, memory_parts
from realrl.training.forecast import Outlook, lengths_so_far
from realrl.training.optim import build_optimizer

PROMPT, RESPONSE, GROUPS, SIZE = 24, 10, 3, 4
LENGTHS = Lengths(PROMPT, RESPONSE)
SIZES = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 64}


@pytest.fixture
def model(tiny_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_folder).train()


def counted(call) -> int:
    """Operations of the products within, those of attention included."""
    # What torch's counter does not know: the product that adds in place, and attention over the parts of a tree, two products
    # forward and four backward.
    kernel, backward = "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"
    unknown = {
        torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1],
        getattr(torch.ops.aten, kernel): lambda q, k, v, *_, **__: 2 * 2 * math.prod(q) * k[2],
        getattr(torch.ops.aten, backward): lambda grad, q, k, v, *_, **__: 4 * 2 * math.prod(q) * k[2],
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        call()
    return counter.get_total_flops()


def whole_batch(common=0):
    rows = GROUPS * SIZE
    return batch_of(
        [[3] * common + [4 + group] * (PROMPT - common) for group in range(GROUPS)],
        [[8 + row] * RESPONSE for row in range(rows)],
        [row // SIZE for row in range(rows)],
        [1.0] * rows,
    )


@pytest.mark.parametrize(("layout", "common"), [("tree", 0), ("tree", 16), ("padded", 0)])
def test_forward_and_backward_operations(model, layout, common):
    layout_of(model, layout, longest=PROMPT + RESPONSE)
    stats, batch, lengths = {}, whole_batch(common), Lengths(PROMPT, RESPONSE, common)
    options = {"shared": layout == "tree", "budget": 10_000}
    found = counted(lambda: stats.update(got=response_logprobs(model, batch, temperature=1.0, layout=layout)))
    work = forward_work(Shape.of(model), GROUPS, SIZE, lengths, **options)
    assert work.forward == pytest.approx(found, rel=0.02)
    found = counted(lambda: stats["got"].logprobs.sum().backward())
    work = backward_work(Shape.of(model), GROUPS, SIZE, lengths, **options, checkpointing=False)
    assert work.backward + work.forward == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("common", [0, 16])
def test_sampling_operations(model, tiny_folder, common):
    head_of(model)  # tries the model once
    sampler = HFSampler(model, AutoTokenizer.from_pretrained(tiny_folder), longest=PROMPT + RESPONSE)
    sampler._end_ids = {10**6}  # no response ends early
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=RESPONSE, batch_rows=256)
    prompts = [prompt.token_ids for prompt in whole_batch(common).prompts]
    found = counted(lambda: sampler.sample(prompts, group_size=SIZE, params=params, seeds=list(range(GROUPS * SIZE))))
    work = sampling_work(
        Shape.of(model), GROUPS, SIZE, Lengths(PROMPT, RESPONSE, common), rows_at_once=256, longest=RESPONSE, width=4
    )
    assert work.forward == pytest.approx(found, rel=0.02)


def kept_for_backward(model, batch, dtype, layout) -> int:
    """Bytes of the storages that autograd keeps in a forward pass, the weights themselves and masks left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.is_floating_point() and (at := tensor.untyped_storage().data_ptr()) not in weights:
            # Kept alive, so that no address comes twice.
            kept[at] = tensor.untyped_storage()
        return tensor

    low = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), low:
        response_logprobs(model, batch, temperature=1.0, layout=layout)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_activations_are_what_autograd_keeps(tiny_folder, layout, dtype):
    config = recipe_of(tiny_folder, model={"autocast": "bfloat16" if dtype == "bfloat16" else "none"}, train={"layout": layout})
    found = {}
    for layers in (2, 6):
        model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=layers, **SIZES))
        layout_of(model, layout, longest=PROMPT + RESPONSE)
        shape = Shape.of(model)
        found[layers] = kept_for_backward(model, whole_batch(), dtype, layout), activation_bytes(config, shape, LENGTHS)
    real, estimated = (found[6][index] - found[2][index] for index in (0, 1))
    assert estimated == pytest.approx(real, rel=0.1)


def recipe_of(folder, **sections):
    """Updates of the groups of `whole_batch`, in one micro-batch."""
    sections = {
        "train": {"prompts_per_step": GROUPS, "mini_batch_prompts": GROUPS, "steps": 8} | sections.pop("train", {}),
        "sampling": {"group_size": SIZE, "max_new_tokens": 2 * RESPONSE} | sections.pop("sampling", {}),
        "model": {"path": str(folder)} | sections.pop("model", {}),
        "data": {"train": "column_addition", "eval": ["column_addition"]},
        **sections,
    }
    return parse_config(sections)


def test_weights_gradients_and_optimizer_are_what_a_step_holds(model, tiny_folder):
    config = recipe_of(tiny_folder)
    optimizer = build_optimizer(config.optim, model)
    response_logprobs(model, whole_batch(), temperature=1.0).logprobs.sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [value for entries in optimizer.state.values() for value in entries.values() if value.dim()]
    parts = memory_parts(config, model, LENGTHS, 0, device="cpu")
    assert parts["weights, gradients and optimizer"] == sum(tensor.nbytes for tensor in tensors)


def test_a_sketch_counts_as_the_model_does(model, tiny_folder):
    sketched, found = meta_model(str(tiny_folder), dtype=torch.float32)
    assert found and sketched.device.type == "meta"
    assert Shape.of(sketched) == Shape.of(model)


@pytest.mark.parametrize(("size", "billions"), [("1.5B", 1.777), ("7B", 7.616)])
def test_the_paper_s_models_are_known_without_the_hub(size, billions):
    """Parameters as the hub's pages of the models have them."""
    path = f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}"
    model, _ = meta_model(path, dtype=torch.bfloat16)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.001)


def test_evaluations_are_counted(tiny_folder):
    def counted_in(start, **eval_keys):
        return evaluations(recipe_of(tiny_folder, eval=eval_keys), start)

    assert counted_in(0, every=0, at_start=False) == 1
    assert counted_in(0, every=0) == 2
    assert counted_in(0, every=4) == 3  # 0, 4, 8
    assert counted_in(0, every=3) == 4  # 0, 3, 6, 8
    assert counted_in(3, every=3) == 2


def test_work_is_time_by_the_rate(tiny_folder):
    """A machine twice as fast needs half the time; one that only multiplies faster in bfloat16 needs more than half."""
    shape = Shape.of(meta_model("smollm2-135m", dtype=torch.float32)[0])
    config = recipe_of(tiny_folder, model={"autocast": "bfloat16"}, sampling={"dtype": "bfloat16"})

    def taken(float32, bfloat16):
        rates = Rates("cpu", 1, Speed(float32, float32), Speed(bfloat16, bfloat16))
        return run_seconds(config, shape, LENGTHS, [16], rates).total

    assert taken(2e11, 4e11) == pytest.approx(taken(1e11, 2e11) / 2)
    assert taken(1e11, 2e11) / 2 < taken(1e11, 4e11) < taken(1e11, 2e11)


def outlook(folder, model, rate=1e11, **sections):
    return Outlook(recipe_of(folder, **sections), model, Rates("cpu", 2, Speed(rate, rate), None), LENGTHS, {"held out": 64})


def test_the_time_is_one_line_and_a_long_run_is_told_what_to_lower(model, tiny_folder):
    (line,) = outlook(tiny_folder, model).time_lines()
    assert line.startswith("time: about ") and "(100 GFLOP/s in float32, 2 threads): sampling " in line
    line, shorter = outlook(tiny_folder, model, rate=1e5).time_lines()
    assert shorter.startswith("shorter: ") and "train.steps = 4 saves" in shorter


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(model, tiny_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    big = meta_model("smollm2-135m", dtype=torch.float32)[0]
    run = tmp_path / "runs" / "new"
    saved = 3 * 4 * big.num_parameters()  # weights and two moments
    sections = {"run": {"dir": str(run)}, "checkpoint": {"every": 1, "keep": 2}, "log": {"rollouts": False}}
    for free, fits in ((3.2 * saved, True), (2.9 * saved, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=int(free)))
        if fits:
            outlook(tiny_folder, big, **sections).check_disk()
        else:
            with pytest.raises(
                ConfigError, match=r"run.dir = .*new' needs about 4.5 GiB of 4.4 GiB free: checkpoints.*checkpoint.keep"
            ):
                outlook(tiny_folder, big, **sections).check_disk()
    assert not run.parent.exists()
    # What an earlier start left there counts as free: it is overwritten.
    run.mkdir(parents=True)
    with (run / "old").open("wb") as file:
        file.truncate(int(0.3 * saved))
    outlook(tiny_folder, big, **sections).check_disk()


def test_memory_that_is_certainly_too_little_is_refused(model, tiny_folder):
    found = outlook(tiny_folder, model)
    needed = sum(memory_parts(found.config, model, LENGTHS, 64, device="cpu").values())
    assert not any("WARNING" in line for line in found.space_lines(int(1.1 * needed), None))
    assert "WARNING: memory may not suffice; lower train.micro_batch_tokens" in found.space_lines(int(0.9 * needed), None)[-1]
    with pytest.raises(ConfigError, match="lower train.micro_batch_tokens"):
        found.space_lines(int(0.4 * needed), None)


def test_a_resumed_run_goes_by_its_own_lengths(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    records = [
        {"step": 1, "reward/mean": 0.5, "response/length_mean": 6.0, "compute/rollouts_share": 0.5},
        {"step": 1, "eval/set/sampled/accuracy": 0.5},
        {"step": 2, "reward/mean": 0.5, "response/length_mean": 8.0, "compute/rollouts_share": 1.0},
    ]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert lengths_so_far(LENGTHS, metrics) == Lengths(PROMPT, 7.0, 0, 0.75)
