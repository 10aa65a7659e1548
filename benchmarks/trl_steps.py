"""What the exact gradient costs inside TRL: an optimizer step of RealTrainer beside one of GRPOTrainer on the same sizes.

    .venv/bin/python benchmarks/trl_steps.py [--rounds 5] [--threads 1]

A random Qwen2 (5 M parameters) samples once, then steps without sampling are timed: GRPO, REAL with whole groups in each
micro-batch, and REAL with groups cut by micro-batches (one forward pass more). Prints JSON; medians over alternating rounds.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from realrl.integrations.trl import RealConfig, RealTrainer
from realrl.models.adder import character_tokenizer

GROUP, ROWS, TOKENS = 8, 32, 96
# name → (trainer, configuration, rows of a micro-batch)
CASES = {
    "grpo": (GRPOTrainer, GRPOConfig, 8),
    "real, whole groups": (RealTrainer, RealConfig, 8),
    "grpo, groups cut": (GRPOTrainer, GRPOConfig, 4),
    "real, groups cut": (RealTrainer, RealConfig, 4),
}


def step_seconds(trainer_class, config_class, rows: int, folder: str, checkpointing: bool) -> list[float]:
    """Seconds of the optimizer steps that sample nothing."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            eos_token_id=None,
        )
    )
    arguments = config_class(
        folder,
        num_generations=GROUP,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=ROWS // rows,
        num_iterations=4,
        max_steps=4,
        max_completion_length=TOKENS,
        gradient_checkpointing=checkpointing,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    seconds: list[float] = []

    class Timed(trainer_class):
        def training_step(self, *args, **kwargs):
            started = time.perf_counter()
            loss = super().training_step(*args, **kwargs)
            if (self._step - 1) % (ROWS // rows) == 0:
                seconds.append(0.0)
            seconds[-1] += time.perf_counter() - started
            return loss

    trainer = Timed(
        model,
        lambda completion_ids, **_: [float(sum(ids) % 2) for ids in completion_ids],
        arguments,
        train_dataset=Dataset.from_dict({"prompt": [f"{n}+{n}=" for n in range(16)]}),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {}
    for checkpointing in (False, True):
        times: dict[str, list[float]] = {name: [] for name in CASES}
        for _ in range(options.rounds):
            for name, (trainer, config, rows) in CASES.items():
                with tempfile.TemporaryDirectory() as folder:
                    times[name] += step_seconds(trainer, config, rows, folder, checkpointing)
        median = {name: statistics.median(values) for name, values in times.items()}
        report["with gradient checkpointing" if checkpointing else "without gradient checkpointing"] = {
            "step seconds": {name: round(value, 3) for name, value in median.items()},
            "real / grpo, whole groups": round(median["real, whole groups"] / median["grpo"], 3),
            "real / grpo, groups cut": round(median["real, groups cut"] / median["grpo, groups cut"], 3),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
