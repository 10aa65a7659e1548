"""The tiny adder that ships with the package is small, read as float32, and half right; its command makes another as good."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from realrl.data.tasks import TaskProblems
from realrl.models import resolve_model

PROBLEMS = 512
ACCURACY = 0.49  # realrl/models/adder.py


def share_of_right_answers(folder):
    """On held-out problems, one answer each at temperature 1, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    questions = [problem.problem for problem in TaskProblems("column_addition", "eval", 0, {}, PROBLEMS)]
    torch.manual_seed(0)
    right = 0
    # Problems of one length need no padding.
    for length in sorted({len(question) for question in questions}):
        batch = [question for question in questions if len(question) == length]
        ids = torch.tensor([[1, *tokenizer(question)["input_ids"]] for question in batch])
        answers = model.generate(ids, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=48)
        for question, answer in zip(batch, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
            boxed = re.search(r"\\boxed\{(\d+)\}$", answer)
            right += boxed is not None and int(boxed[1]) == sum(map(int, question.rstrip("=").split("+")))
    return right / len(questions)


@pytest.fixture(scope="module")
def shipped():
    return share_of_right_answers(resolve_model("tiny-adder"))


def test_the_shipped_model_is_small_and_as_good_as_the_docs_say(shipped):
    folder = Path(resolve_model("tiny-adder"))
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < 1.5e6 and {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert abs(shipped - ACCURACY) < 4 * math.sqrt(ACCURACY * (1 - ACCURACY) / PROBLEMS)


@pytest.mark.skipif(os.environ.get("REALRL_LONG") != "1", reason="trains for minutes; set REALRL_LONG=1")
def test_the_command_makes_a_model_as_good(tmp_path, shipped):
    subprocess.run([sys.executable, "-m", "realrl.models.adder", str(tmp_path)], check=True)
    made = share_of_right_answers(tmp_path)
    error = math.sqrt((shipped * (1 - shipped) + made * (1 - made)) / PROBLEMS)
    assert abs(made - shipped) < 4 * error
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in Path(resolve_model("tiny-adder")).iterdir()}
