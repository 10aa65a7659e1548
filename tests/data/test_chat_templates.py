"""A model's chat template keeps every text of a prompt, or is refused with the remedy."""

from pathlib import Path

import pytest

from realrl.config import DataSection
from realrl.data import render_prompt, render_prompts
from realrl.errors import ConfigError
from realrl.models.adder import character_tokenizer
from realrl.types import Problem


def turns(content):
    return "{% for m in messages %}[{{ m['role'] }}]" + content + "{% endfor %}"


KEEPS = turns("{{ m['content'] }}")
DATA = DataSection.model_validate(
    {
        "train": "x",
        "max_prompt_tokens": 100_000,
        "system_prompt": "Answer in a box.",
        "prompt_suffix": "\n",
        "examples": [{"problem": "1+2", "response": "<think>one more</think>\\boxed{3}"}],
    }
)
PROBLEM = Problem("p", "Is 1 < 2?", "yes")


def rendered(template, data=DATA, problem=PROBLEM):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return render_prompts([problem], tokenizer, data).prompts[0].text


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            KEEPS,
            "[system]Answer in a box.[user]1+2\n[assistant]<think>one more</think>\\boxed{3}[user]Is 1 < 2?\n",
        ),
        (
            turns("{{ m['content'] | trim }}"),
            "[system]Answer in a box.[user]1+2[assistant]<think>one more</think>\\boxed{3}[user]Is 1 < 2?",
        ),
        # As Mistral's: the system prompt stands in the last turn.
        (
            "{% for m in messages[1:] %}[{{ m['role'] }}]{% if loop.last %}{{ messages[0]['content'] }} {% endif %}"
            "{{ m['content'] }}{% endfor %}",
            "[user]1+2\n[assistant]<think>one more</think>\\boxed{3}[user]Answer in a box. Is 1 < 2?\n",
        ),
    ],
)
def test_a_template_that_keeps_all_texts_is_used(template, expected):
    assert rendered(template) == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [
        # No branch for the system turn: the instruction vanishes.
        (
            "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}",
            r"data.system_prompt: 'Answer in a box.' is not in its prompt '1\+2.*give it as data.prompt_prefix",
        ),
        # Another key, and content in parts: every text is empty.
        (turns("{{ m['text'] }}"), r"data.system_prompt: .* is not in its prompt '\[system\]\[user\]"),
        (turns("{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"), "data.system_prompt: .* is not in its prompt"),
        (turns("{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}"), "a problem: '1.2' is not.*correct the template"),
        # The last turn alone, as templates without a conversation have it.
        ("{{ messages[0]['content'] }}{{ messages[-1]['content'] }}", r"a problem: '1\+2' is not in its prompt"),
        (KEEPS.replace("messages", "messages | reverse"), "a problem: 'Is 1 < 2.' is not|the response of a worked example"),
        (turns("{{ m['content'] | escape }}"), "the response of a worked example: '<think>one more"),
        # As Qwen3's and DeepSeek-R1's: the reasoning of former turns is cut away.
        (
            turns("{{ m['content'].split('</think>')[-1] }}"),
            "the response of a worked example: '<think>.*write the examples into data.prompt_prefix, or set "
            "data.chat_template = 'plain'",
        ),
    ],
)
def test_a_template_that_drops_or_changes_text_is_refused(template, said):
    with pytest.raises(ConfigError, match=said):
        rendered(template)


def test_a_problem_that_stands_in_the_template_by_itself_proves_nothing():
    data, problem = DataSection(train="x"), Problem("p", "1", "1")
    assert rendered("Part 1:" + KEEPS, data, problem) == "Part 1:[user]1"
    with pytest.raises(ConfigError, match="drops or changes a problem: 'text-0-of-a-trial' is not in its prompt 'Part 1:'"):
        rendered("Part 1:", data, problem)


def test_a_problem_of_a_stream_is_looked_at_as_well():
    """A generated task is rendered one problem at a time, long after the start."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = turns("{{ m['content'] | replace('<', 'less than') }}")
    data = DataSection(train="x")
    assert render_prompt(Problem("p", "1+1", "2"), tokenizer, data).text == "[user]1+1"
    with pytest.raises(ConfigError, match="drops or changes a problem: 'Is 1 < 2"):
        render_prompt(PROBLEM, tokenizer, data)


def test_plain_prompts_need_no_template():
    data = DATA.model_copy(update={"chat_template": "plain"})
    assert rendered("", data) == rendered(KEEPS, data)


@pytest.mark.parametrize(
    ("name", "keeps"),
    [
        *(
            (name, True)
            for name in ("qwen2_5", "qwen3", "llama3_2", "gemma", "gemma3", "deepseekv3", "phi3", "cohere2", "gptoss")
        ),
        # These read content in parts alone.
        *((name, False) for name in ("smolvlm", "idefics3", "llava_next")),
    ],
)
def test_real_templates(name, keeps):
    """The templates of these models, as TRL ships them."""
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    data = DATA.model_copy(update={"examples": ()})
    if not keeps:
        with pytest.raises(ConfigError, match="data.chat_template = 'plain'"):
            rendered(template, data)
        return
    text = rendered(template, data)
    assert text.index("Answer in a box.") < text.index("Is 1 < 2?")
