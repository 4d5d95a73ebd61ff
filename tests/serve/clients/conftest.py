"""One real server for all tests here, and a client of each protocol."""

import json
import sys
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "registry"), str(HERE.parents[1] / "models")]

from client_models import (  # noqa: E402
    RECITED,
    write_chat_model,
    write_embedding_model,
    write_reciting_model,
)
from fake_hub import FakeHub  # noqa: E402
from served_process import KEYS, OWNER, SECONDS, Expected, serving_process  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Directories of models by the names that they are served by."""
    directory = tmp_path_factory.mktemp("client-models")
    return {
        "chat": write_chat_model(directory / "chat"),
        "embed": write_embedding_model(directory / "embed"),
        "recite": write_reciting_model(directory / "recite", RECITED),
    }


@pytest.fixture(scope="session")
def hub(models):
    """A Hub that has a model `org/tiny`."""
    hub = FakeHub()
    hub.publish("org/tiny", {path.name: path.read_bytes() for path in models["chat"].iterdir()})
    with hub.running() as url:
        hub.url = url
        yield hub


@pytest.fixture(scope="session")
def server(models, hub, tmp_path_factory):
    """The server, as a user starts it."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_text(json.dumps(KEYS))
    named = [f"{name}={directory}" for name, directory in models.items()]
    options = ["--threads", "1", "--max-sequences", "4", "--max-context", "4096"]
    options += ["--keys", keys, "--data", tmp_path_factory.mktemp("server-data")]
    with serving_process(*named, *options, key=OWNER, HF_ENDPOINT=hub.url) as running:
        yield running


@pytest.fixture(scope="session")
def expected(models):
    """What the chat model answers in this process."""
    return Expected(models["chat"])


@pytest.fixture(scope="session")
def openai_options(server):
    """What OpenAI's clients are made with."""
    return {
        "base_url": f"{server.url}/v1",
        "api_key": OWNER,
        "max_retries": 0,
        "timeout": SECONDS,
    }


@pytest.fixture(scope="session")
def openai_client(openai_options):
    with openai.OpenAI(**openai_options) as client:
        yield client


@pytest.fixture(scope="session")
def anthropic_options(server):
    """What Anthropic's clients are made with."""
    return {"base_url": server.url, "api_key": OWNER, "max_retries": 0, "timeout": SECONDS}


@pytest.fixture(scope="session")
def anthropic_client(anthropic_options):
    with anthropic.Anthropic(**anthropic_options) as client:
        yield client


@pytest.fixture(scope="session")
def ollama_options(server):
    """What Ollama's clients are made with."""
    return {
        "host": server.url,
        "headers": {"Authorization": f"Bearer {OWNER}"},
        "timeout": SECONDS,
    }


@pytest.fixture(scope="session")
def ollama_client(ollama_options):
    with ollama.Client(**ollama_options) as client:
        yield client
