"""A server of our own, and helpers of the tests of servers."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
sys.path[:0] = [str(HERE), str(TESTS / "serve" / "clients"), str(TESTS / "models")]

from client_models import RECITED, write_chat_model, write_reciting_model  # noqa: E402
from served_process import serving_process  # noqa: E402

KEY = "key-of-the-server"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """`hasten serve` with a random chat model and a reciting one, which asks for a key."""
    directory = tmp_path_factory.mktemp("measured-models")
    models = [
        f"chat={write_chat_model(directory / 'chat')}",
        f"recite={write_reciting_model(directory / 'recite', RECITED)}",
    ]
    options = ["--threads", "1", "--max-sequences", "4", "--max-context", "1024"]
    options += ["--data", directory / "data"]
    with serving_process(*models, *options, key=KEY, HASTEN_API_KEY=KEY) as running:
        yield running
