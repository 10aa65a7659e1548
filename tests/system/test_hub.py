"""A hub that cannot be reached: one try, a clear error, and what was stored before is used."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from patience import PATIENCE_S

ASK = """
import torch
from realrl.data import load_problems
from realrl.models import load_model, load_tokenizer
for ask in (
    lambda: load_tokenizer("owner/name"),
    lambda: load_model("owner/name", dtype=torch.float32),
    lambda: load_problems("owner/set"),
):
    try:
        ask()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture(params=["silent", "closed"])
def hub(request):
    """The URL of a server that accepts connections and never answers, or of none; with the connections made."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    connections = []

    def accept():
        try:
            while True:
                connections.append(listener.accept()[0])
        except OSError:
            return

    if request.param == "closed":
        listener.close()
    else:
        threading.Thread(target=accept, daemon=True).start()
    yield url, connections
    listener.close()


def test_a_hub_that_does_not_answer_is_tried_once_and_the_errors_name_what_can_be_had(hub, tmp_path):
    url, connections = hub
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NO_PROXY": "127.0.0.1",
    }
    result = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    tokenizer, model, data = result.stdout.splitlines()
    assert len(connections) <= 1
    assert result.stderr.count(f"the hub ({url}) does not answer") == 1
    for what, line in (("tokenizer", tokenizer), ("model", model)):
        assert line.startswith(f"ConfigError the {what} of 'owner/name' cannot be loaded")
        assert "local folder or a built-in model (smollm2-135m, tiny-adder)" in line
    assert data.startswith("DataError the data set owner/set could not be loaded by `datasets`")
    assert "REALRL_DATA" in data and "path of a JSONL" in data
