"""The quick start of TRL's GRPO documentation with two names changed, on the task of `make quickstart`; 2 CPU cores, no hub.

    python examples/trl_quickstart.py

In TRL's script the names are GRPOConfig and GRPOTrainer; its reward function stays. On a GPU take a larger model, the data set
of TRL's script ("trl-lib/DeepMath-103K") and `accelerate launch`.
"""

import sys

from datasets import Dataset
from trl.rewards import accuracy_reward

from realrl.data import load_problems
from realrl.integrations.trl import RealConfig, RealTrainer
from realrl.models import resolve_model

EXAMPLE = "What is the largest of these numbers: 14, 62, 35?"


def row(problem) -> dict:
    prompt = [
        {"role": "system", "content": r"Reply with the answer in \boxed{}."},
        {"role": "user", "content": EXAMPLE},
        {"role": "assistant", "content": r"\boxed{62}"},
        {"role": "user", "content": problem.problem},
    ]
    return {"prompt": prompt, "solution": rf"\boxed{{{problem.answer}}}"}


def main(steps: int = 16) -> None:
    dataset = Dataset.from_list([row(problem) for problem in load_problems("largest_of_three").problems[:512]])
    trainer = RealTrainer(
        model=resolve_model("smollm2-135m"),
        reward_funcs=accuracy_reward,
        train_dataset=dataset,
        args=RealConfig(
            "runs/trl_quickstart",
            objective={"type": "real", "tau": 0.5},
            num_generations=8,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=4,
            max_completion_length=16,
            learning_rate=3e-5,
            lr_scheduler_type="constant",
            max_steps=steps,
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=True,
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print("mean reward of each step:", " ".join(f"{reward:.2f}" for reward in rewards))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
