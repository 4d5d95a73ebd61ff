"""A tiny model that reads text, for tests of whole commands."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

LETTERS = " abcdefghijklmnopqrstuvwxyz.,\n'\"()-:;_=+*1234"


@pytest.fixture(autouse=True, scope="session")
def _no_cache():
    """Tests neither read nor fill the user's cache of packed weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_CACHE", "off")
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random Llama of 2 layers whose tokens are characters; a Hugging Face directory."""
    sys.path.insert(0, str(Path(__file__).parent / "models"))
    from tiny_models import VOCABULARY, tiny_tensors, write_directory
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for letter in LETTERS[: VOCABULARY - len(vocabulary)]:
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    # Weights of this size keep logits near those of a trained model; larger ones are chaotic.
    tensors = {
        name: values if values.ndim == 1 else values * np.float32(values.shape[1] ** -0.5)
        for name, values in tiny_tensors().items()
    }
    directory = write_directory(tmp_path_factory.mktemp("models") / "tiny", tensors)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return directory
