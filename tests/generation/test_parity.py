"""Hasten in float32 against transformers: logits and greedy text."""

import json
from pathlib import Path

import numpy as np
import pytest

from hasten import _native
from hasten.generation import Engine
from hasten.models import load_model
from hasten.types import EngineOptions, Request, SamplingParams

pytestmark = pytest.mark.parity

CONFIG = {
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 77,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FAMILIES = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "attention bias": ("llama", {"attention_bias": True}),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one kv head": ("llama", {"num_key_value_heads": 1, "head_dim": 64}),
    "llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "linear scaling": ("llama", {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {"head_dim": 10, "sliding_window": None}),
    "window": ("mistral", {"head_dim": 10, "sliding_window": 16}),
}


def save_random_model(kind, changes, path):
    """A transformers model with large random weights, saved; biases and norms are random too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }
    torch.manual_seed(0)
    config, model = classes[kind]
    made = model(config(**CONFIG | changes)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand_like(parameter) + (0.5 if "norm" in name else -0.5))
            else:
                parameter.normal_(0, 2 / parameter.shape[1] ** 0.5)
    made.save_pretrained(path)
    return made


def score(engine, tokens):
    return np.concatenate([rows for _, rows in engine.score(tokens)])


def relative_error(got, want):
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize(("kind", "changes"), FAMILIES.values(), ids=FAMILIES.keys())
def test_random_models(isa, kind, changes, tmp_path):
    import torch

    made = save_random_model(kind, changes, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 77, 100).tolist()
    with torch.no_grad():
        want = made(torch.tensor([tokens])).logits[0].numpy()
    options = EngineOptions(isa=isa, weights="f32", kv="f32", chunk=33, max_context=128)
    with Engine(load_model(str(tmp_path)), options) as engine:
        assert relative_error(score(engine, tokens), want) < 1e-5


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def smollm2_in_torch(smollm2, tmp_path_factory):
    """The dequantised weights in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values = smollm2.config.to_huggingface()
    config = LlamaConfig(**values, attn_implementation="sdpa")
    with torch.device("meta"):
        made = LlamaForCausalLM(config)
    state = {
        name: torch.from_numpy(np.array(tensor.to_float32()))
        for name, tensor in smollm2.weights.items()
    }
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    made.load_state_dict(state, assign=True)
    # Buffers are not in the state; a fresh rotary embedding has them.
    made.model.rotary_emb = type(made.model.rotary_emb)(config=config)
    return made.eval()


PROMPTS = json.loads((Path(__file__).parent / "prompts.json").read_text())


def float_options(isa, **changes):
    return EngineOptions(isa=isa, weights="f32", kv="f32", max_context=256, **changes)


@pytest.mark.model
@pytest.mark.parametrize("name", [isa for isa in _native.isas() if isa != "scalar"])
def test_smollm2_logits(smollm2, smollm2_in_torch, name):
    import torch

    text = " ".join(PROMPTS)
    tokens = smollm2.tokenizer.encode(text)[:200]
    with torch.no_grad():
        want = smollm2_in_torch(torch.tensor([tokens])).logits[0].numpy()
    with Engine(smollm2, float_options(name)) as engine:
        assert relative_error(score(engine, tokens), want) < 1e-3


@pytest.mark.model
def test_smollm2_greedy_text(smollm2, smollm2_in_torch):
    """64 tokens after each prompt are those that transformers chooses.

    One pass over prompt and answer says what transformers would choose at each place, given the
    tokens before it; if that is our token everywhere, its own answer is the same.
    """
    import torch

    prompts = [smollm2.tokenizer.encode(prompt) for prompt in PROMPTS]
    sampling = SamplingParams(max_tokens=64, ignore_eos=True)
    with Engine(smollm2, float_options(None, max_sequences=20)) as engine:
        for i, prompt in enumerate(prompts):
            engine.submit(Request(str(i), tuple(prompt), sampling))
        answers = [[] for _ in prompts]
        while engine.has_work:
            for output in engine.step():
                answers[int(output.request_id)] += output.tokens
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 64
        with torch.no_grad():
            logits = smollm2_in_torch(torch.tensor([prompt + answer])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
