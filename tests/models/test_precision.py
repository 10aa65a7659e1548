"""Which precision "auto" becomes: rates in, a settled recipe out; measured rates; what a resumed run and a sweep keep."""

import json
from dataclasses import asdict

import pytest
import torch

from realrl.config import dump_config, load_config, parse_config
from realrl.errors import ConfigError
from realrl.models.precision import (
    has_auto,
    precision_notes,
    sampling_dtype,
    settle,
    settle_as_before,
    settle_for_gpus,
    training_dtype,
)
from realrl.system.hardware import Rates, Speed, choose_device, measure_rates

AMX = Rates("cpu", 2, Speed(246e9, 240e9), Speed(859e9, 700e9))
AVX2 = Rates("cpu", 2, Speed(66e9, 60e9), Speed(1.1e9, 0.9e9))
BROKEN = Rates("cpu", 2, Speed(66e9, 60e9), None, "DNNL does not support bf16/f16 backward")
# Forward is faster in bfloat16, a whole training step is not.
FORWARD_ONLY = Rates("cpu", 2, Speed(60e9, 60e9), Speed(120e9, 30e9))


def recipe(model=None, sampling=None, **sections):
    model = {"path": "tiny-adder"} | (model or {})
    return parse_config({"model": model, "data": {"train": "column_addition"}, "sampling": sampling or {}, **sections})


AUTO = {"model": {"autocast": "auto", "dtype": "auto"}, "sampling": {"dtype": "auto"}}


@pytest.mark.parametrize(
    ("rates", "dtypes"),
    [
        (AMX, ("float32", "bfloat16", "bfloat16")),
        (AVX2, ("float32", "none", "same")),
        (BROKEN, ("float32", "none", "same")),
        (FORWARD_ONLY, ("float32", "none", "bfloat16")),
    ],
)
def test_auto_is_the_faster_precision(rates, dtypes):
    config = settle(recipe(**AUTO), rates)
    assert (config.model.dtype, config.model.autocast, config.sampling.dtype) == dtypes
    assert not has_auto(config) and has_auto(recipe(**AUTO))


@pytest.mark.parametrize("keeping", [{"model": {"lora": {}}}, {"optim": {"master_weights": True}}])
def test_weights_are_bfloat16_only_where_no_update_is_lost(keeping):
    model = AUTO["model"] | keeping.get("model", {})
    config = settle(recipe(model, AUTO["sampling"], optim=keeping.get("optim", {})), AMX)
    # Such a model is sampled from as it is, and needs no autocast.
    assert (config.model.dtype, config.model.autocast, config.sampling.dtype) == ("bfloat16", "none", "same")
    assert settle(recipe(model, AUTO["sampling"], optim=keeping.get("optim", {})), AVX2).model.dtype == "float32"


def test_a_quantised_model_is_sampled_from_as_it_is():
    config = recipe({"lora": {}, "quantize": "4bit", "dtype": "float32", "autocast": "auto"}, AUTO["sampling"])
    assert settle(config, AMX).sampling.dtype == "same" and settle(config, AMX).model.autocast == "bfloat16"


def test_what_a_recipe_names_stays():
    named = recipe({"autocast": "bfloat16"}, {"dtype": "bfloat16"})
    assert settle(named, AVX2) == named and settle(recipe(), AMX) == recipe()


def test_gpus_take_bfloat16_and_a_named_cpu_float32():
    assert training_dtype(settle_for_gpus(recipe(**AUTO))) == "bfloat16"
    on_cpu = settle_for_gpus(recipe(AUTO["model"] | {"device": "cpu"}, AUTO["sampling"]))
    assert (training_dtype(on_cpu), sampling_dtype(on_cpu)) == ("float32", "float32")


def test_one_line_says_what_was_chosen_and_a_warning_what_is_slow():
    uses = {"training": "float32", "sampling": "float32"}
    (line,) = precision_notes(AVX2, uses, "do this")
    assert "training float32" in line and "66 and 60 GFLOP/s" in line and "1 and 1 GFLOP/s" in line and "2 threads" in line
    _, slow = precision_notes(AVX2, {"sampling": "bfloat16"}, "do this")
    assert slow == "WARNING: sampling in bfloat16 is 60.0 times as slow as float32 on this machine; do this"
    # Forward plus backward: (1/66 + 2/60) against (1/1.1 + 2/0.9), in units of 1e9.
    _, slow = precision_notes(AVX2, {"training": "bfloat16"}, "do this")
    assert f"{(1 / 1.1 + 2 / 0.9) / (1 / 66 + 2 / 60):.1f} times" in slow
    _, broken = precision_notes(BROKEN, {"training": "bfloat16"}, "do this")
    assert "raises an error" in broken and broken.endswith("do this")
    assert len(precision_notes(AMX, {"training": "bfloat16", "sampling": "bfloat16"}, "do this")) == 1


def test_a_resumed_run_keeps_what_it_began_with(tmp_path):
    (tmp_path / "config.toml").write_text(dump_config(settle(recipe(**AUTO), AMX)))
    before = load_config(tmp_path / "config.toml")
    kept = settle_as_before(recipe(**AUTO), before)
    assert kept == settle(recipe(**AUTO), AMX) and settle(kept, AVX2) == kept
    # What the resuming command names itself goes before.
    assert settle_as_before(recipe({"autocast": "none"}, AUTO["sampling"]), before).model.autocast == "none"


def test_measured_rates_are_whole_and_go_through_a_file():
    threads = torch.get_num_threads()
    rates = measure_rates(torch.device("cpu"), 64, 128)
    assert torch.get_num_threads() == threads and rates.device == "cpu" and rates.threads == threads
    assert rates.float32.forward > 0 and rates.float32.backward > 0
    assert Rates.read(json.loads(json.dumps(asdict(rates)))) == rates
    assert Rates.read(json.loads(json.dumps(asdict(BROKEN)))) == BROKEN


def test_speed_of_training_weighs_backward_twice():
    assert Speed(60.0, 30.0).training == pytest.approx(3 / (1 / 60 + 2 / 30))


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA.*auto"):
            choose_device("cuda")
