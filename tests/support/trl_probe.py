"""A run with RealTrainer that writes down what each optimizer step saw, for test_trl.py.

A case is options of RealConfig, and `lora`, `resume`. Each rank writes OUT/rank{N}.pt: of each optimizer step its rollouts
(and their log-probabilities by vLLM, where that sampled), the weights at sampling and now, and the gradient that reaches the
optimizer.
"""

import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from realrl.integrations.trl import RealConfig, RealTrainer

GROUP = 4
PROMPTS = [f"{a}+{b}=" for a, b in ((1, 2), (13, 4), (25, 36), (7, 7), (40, 1), (9, 90), (3, 3), (61, 5), (8, 12), (2, 2))]


def reward_of(prompt: str, completion_ids: list[int]) -> float | None:
    """Parity of the sum of the token ids; of the ten prompts one is always right, one always wrong, one not scored when odd."""
    odd = float(sum(completion_ids) % 2)
    return {"13+4=": 1.0, "40+1=": 0.0, "9+90=": None if odd else 1.0}.get(prompt, odd)


def fresh_model(folder: str, lora: bool = False):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if lora:
        from peft import get_peft_model

        torch.manual_seed(5)
        model = get_peft_model(model, lora_config())
    return model


def lora_config():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


class Probe(RealTrainer):
    """Keeps what each optimizer step saw."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows, self.sampled, self.steps, self.old = [], [], [], None

    def weights(self):
        return {name: value.clone() for name, value in self.accelerator.unwrap_model(self.model).state_dict().items()}

    def _generate_and_score_completions(self, inputs):
        self.old = self.weights()
        return super()._generate_and_score_completions(inputs)

    def _compute_loss(self, model, inputs):
        for index in range(len(inputs["completion_ids"])):
            prompt, completion = (
                inputs[f"{part}_ids"][index][inputs[f"{part}_mask"][index].bool()].tolist() for part in ("prompt", "completion")
            )
            self.rows.append((prompt, completion, int(inputs["real_group"][index])))
            if "sampling_per_token_logps" in inputs:
                self.sampled.append(inputs["sampling_per_token_logps"][index][: len(completion)].tolist())
        return super()._compute_loss(model, inputs)


class Recorder(TrainerCallback):
    trainer: Probe

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        unwrapped = self.trainer.accelerator.unwrap_model(model)
        gradient = {name: p.grad.clone() for name, p in unwrapped.named_parameters() if p.grad is not None}
        step = {"rows": self.trainer.rows, "old": self.trainer.old, "now": self.trainer.weights(), "gradient": gradient}
        self.trainer.steps.append(step | {"sampled": self.trainer.sampled})
        self.trainer.rows, self.trainer.sampled = [], []


def run(folder: str, out: Path, case: dict) -> Probe:
    case = dict(case)
    lora, resume = case.pop("lora", False), case.pop("resume", None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {tuple(tokenizer(prompt)["input_ids"]): prompt for prompt in PROMPTS}

    def reward(prompts, completion_ids, **_):
        ids = [tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts]
        return [reward_of(texts[key], list(completion)) for key, completion in zip(ids, completion_ids, strict=True)]

    defaults = dict(
        output_dir=str(out / "run"),
        num_generations=GROUP,
        max_completion_length=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=1,
    )
    recorder = Recorder()
    recorder.trainer = trainer = Probe(
        fresh_model(folder),
        reward,
        RealConfig(**defaults | case),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        callbacks=[recorder],
        peft_config=lora_config() if lora else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    torch.save({"steps": trainer.steps, "log": trainer.state.log_history}, out / f"rank{trainer.args.process_index}.pt")
    return trainer


def run_all(folder: str, out: str, cases: str) -> None:
    """Each of `cases` (JSON: name → case) in turn, into OUT/name; what a rank of test_trl.py runs."""
    for name, case in json.loads(cases).items():
        (Path(out) / name).mkdir(exist_ok=True)
        run(folder, Path(out) / name, case)
