"""Nothing that a model folder, a data set or a checkpoint holds runs as code."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch

import realrl
from realrl.config import DataSection
from realrl.data import load_problems, render_prompts
from realrl.data.prompts import render_prompt
from realrl.errors import ConfigError, DataError
from realrl.models import load_model, load_tokenizer
from realrl.types import Problem

SOURCE = Path(realrl.__file__).parent
# Modules that read pickles or code, and calls that run text.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "joblib",
    "dill",
    "cloudpickle",
    "yaml",
    "code",
    "codeop",
    "runpy",
}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("os", "system"), ("os", "popen"), ("pd", "read_pickle")}
PARSERS = {"parse_expr", "sympify", "parse_latex", "lambdify"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_source_file_reads_pickles_or_runs_text(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & MODULES, f"{path}:{node.lineno}"
            assert not {alias.name for alias in node.names} & PARSERS, f"{path}:{node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in CALLS, f"{path}:{node.lineno}"
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            called = (node.func.value.id, node.func.attr)
            keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            assert called not in ATTRIBUTES or keywords.get("weights_only") is True, f"{path}:{node.lineno}"
        for keyword in node.keywords:
            wanted = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            assert not (keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and wanted), f"{path}:{node.lineno}"


@pytest.fixture
def model_folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def test_a_model_with_pickled_weights_alone_is_refused(model_folder, tmp_path):
    class Canary:
        def __reduce__(self):
            return Path.touch, (tmp_path / "canary",)

    (model_folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Canary()}, model_folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded.*safetensors"):
        load_model(str(model_folder), dtype=torch.float32)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("known", [True, False], ids=["a known architecture", "an unknown one"])
def test_code_of_a_model_runs_only_where_the_recipe_names_it(model_folder, tmp_path, known):
    """A known architecture is transformers' own code; another one is refused."""
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nfrom transformers import Qwen2Config as Own, Qwen2ForCausalLM as OwnModel\n"
    (model_folder / "own.py").write_text(code)
    config = json.loads((model_folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": ["own.Own", None]}
    config |= {} if known else {"model_type": "unheard_of"}
    (model_folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((model_folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}} | ({} if known else {"tokenizer_class": "Unheard"})
    (model_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for load in (lambda: load_tokenizer(str(model_folder)), lambda: load_model(str(model_folder), dtype=torch.float32)):
        if known:
            load()
        else:
            with pytest.raises(ConfigError, match="cannot be loaded"):
                load()
        assert not canary.exists()


def test_an_adapter_that_names_code_is_refused(model_folder, tmp_path):
    pytest.importorskip("peft")
    from realrl.models.adapters import load_adapter

    settings = {"peft_type": "LORA", "megatron_core": "antigravity", "megatron_config": {"a": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="names code in megatron_config"):
        load_adapter(None, tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ self.__init__.__globals__ }}",
        "{{ messages.__class__.__base__.__subclasses__()[0].__init__.__globals__ }}",
        "{% for m in messages %}{{ m.update({'role': 'x'}) }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ range(10**9) | list }}",
        "{{ 1 / 0 }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ unclosed",
    ],
)
def test_a_chat_template_runs_nothing(model_folder, tmp_path, template):
    tokenizer = load_tokenizer(str(model_folder))
    tokenizer.chat_template = template.replace("CANARY", str(tmp_path / "canary"))
    with pytest.raises(ConfigError, match="chat template cannot be rendered"):
        render_prompts([Problem("p", "What is 1+1?", "2")], tokenizer, DataSection(train="x"))
    assert not (tmp_path / "canary").exists()


def test_a_chat_template_without_end_is_stopped(model_folder, monkeypatch):
    tokenizer = load_tokenizer(str(model_folder))
    tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr("realrl.data.prompts._TEMPLATE_S", 0.2)
    with pytest.raises(ConfigError, match="not done after 0.2 s"):
        render_prompt(Problem("p", "What is 1+1?", "2"), tokenizer, DataSection(train="x"))


def test_a_folder_of_data_with_a_script_runs_nothing(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    (folder / "data.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    try:
        load_problems(str(folder))
    except DataError as error:
        assert "could not be loaded" in str(error)  # noqa: PT017
    assert not (tmp_path / "canary").exists()
