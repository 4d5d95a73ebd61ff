"""A real server, with a real engine on the tiny model, for tests that attack it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SERVE, MODELS = HERE.parent, HERE.parents[1] / "models"
sys.path[:0] = [str(HERE), str(SERVE), str(SERVE / "registry"), str(MODELS)]

from attacked import Attacked  # noqa: E402

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def chat_model(tiny_model, tmp_path_factory):
    """The tiny model with a chat template."""
    model = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "chat")
    config = {"eos_token": "</s>", "chat_template": TEMPLATE}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    return model


@pytest.fixture(scope="session")
def start_server(chat_model, tmp_path_factory):
    """Starts a server with a data directory of its own: `start_server(limits=..., keys=...)`."""

    def start(**settings):
        return Attacked(chat_model, tmp_path_factory.mktemp("data") / "server", **settings)

    return start


@pytest.fixture(scope="module")
def server(start_server):
    """One server for a module."""
    with start_server() as running:
        yield running
