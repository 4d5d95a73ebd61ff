"""Hasten in float32 against transformers: logits and greedy text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from families import SIZES, VARIANTS, VOCABULARY, logits_of
from gguf_families import write_gguf

from hasten import _native
from hasten.generation import Engine
from hasten.models import load_model
from hasten.models.config_json import to_huggingface
from hasten.types import EngineOptions, Request, SamplingParams

pytestmark = pytest.mark.parity


def score(engine, tokens):
    return np.concatenate([rows for _, rows in engine.score(tokens)])


def relative_error(got, want):
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_random_models(variant, tmp_path):
    """Logits and greedy tokens of all executors; the native one on every instruction set."""
    made = variant.save(tmp_path)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 100).tolist()
    want = logits_of(made, tokens)
    model = load_model(str(tmp_path))
    runs = [{"executor": "reference"}, {"executor": "torch"}] + [
        {"isa": isa, "fuse": fuse} for isa in _native.isas() for fuse in (True, False)
    ]
    for run in runs:
        options = EngineOptions(
            weights="f32", kv="f32", chunk=33, max_context=128, threads=1, **run
        )
        with Engine(model, options) as engine:
            assert relative_error(score(engine, tokens), want) < 1e-5, run
            answer = greedy(engine, tokens[:40], 20)
        chosen = logits_of(made, tokens[:40] + answer)[39:-1].argmax(-1)
        assert chosen.tolist() == answer, run


@pytest.mark.parametrize("name", [name for name, v in VARIANTS.items() if v.in_gguf is not None])
def test_random_models_in_gguf_files(name, tmp_path):
    made = VARIANTS[name].make(VARIANTS[name].in_gguf)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 100).tolist()
    want = logits_of(made, tokens)
    model = load_model(write_gguf(tmp_path / "tiny.gguf", made))
    options = EngineOptions(weights="f32", kv="f32", chunk=33, max_context=128, threads=1)
    with Engine(model, options) as engine:
        assert relative_error(score(engine, tokens), want) < 1e-5
        answer = greedy(engine, tokens[:40], 20)
    chosen = logits_of(made, tokens[:40] + answer)[39:-1].argmax(-1)
    assert chosen.tolist() == answer


def test_dynamic_scaling_is_that_of_the_whole_context(tmp_path):
    """transformers scales for the text so far, we for the engine's context; here both are 256."""
    made = VARIANTS["dynamic scaling"].save(tmp_path)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 256).tolist()
    want = logits_of(made, tokens)
    model = load_model(str(tmp_path))
    for context, same in ((256, True), (300, False)):
        options = EngineOptions(weights="f32", kv="f32", threads=1, max_context=context)
        with Engine(model, options) as engine:
            assert (relative_error(score(engine, tokens), want) < 1e-5) == same


def test_the_text_part_of_a_model_with_images(tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "image_size": 16,
        "num_attention_heads": 2,
        "patch_size": 8,
    }
    text = SIZES | VARIANTS["gemma3"].changes
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=[1, 7]
    )
    made = transformers.Gemma3ForConditionalGeneration(config).eval()
    made.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 50).tolist()
    want = logits_of(made, tokens)
    options = EngineOptions(weights="f32", kv="f32", threads=1)
    for names in ("as saved", "as in the model"):
        if names == "as in the model":
            rename_tensors(
                tmp_path / "model.safetensors",
                {"language_model.model.": "model.language_model.", "vision": "model.vision"},
            )
        model = load_model(str(tmp_path))
        assert model.config.model_type == "gemma3_text"
        assert model.config.eos_ids == (1, 7)
        with Engine(model, options) as engine:
            assert relative_error(score(engine, tokens), want) < 1e-5, names


def rename_tensors(path, prefixes):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    for old, new in prefixes.items():
        assert any(name.startswith(old) for name in tensors)
        pattern = re.compile("^" + re.escape(old))
        tensors = {pattern.sub(new, name): values for name, values in tensors.items()}
    save_file(tensors, path)


def greedy(engine, prompt, count):
    engine.submit(Request("0", tuple(prompt), SamplingParams(max_tokens=count, ignore_eos=True)))
    answer = []
    while engine.has_work:
        for output in engine.step():
            answer += output.tokens
    return answer


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def smollm2_in_torch(smollm2, tmp_path_factory):
    """The dequantised weights in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values = to_huggingface(smollm2.config)
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
