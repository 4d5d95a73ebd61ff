"""Encoders through the executors: the same bits always, and transformers' hidden states."""

from collections import Counter

import numpy as np
import pytest
from encoders import make_encoder, save_random_encoder
from tiny import Player, some_tokens

from hasten.errors import ModelFileError, UnsupportedModelError, UsageError
from hasten.generation import Engine
from hasten.generation.lowering import lower
from hasten.models import architectures, load_model
from hasten.models.encoders import encoder_tensor_name, read_encoder
from hasten.models.ops import (
    Add,
    Attention,
    Gelu,
    KvWrite,
    LayerNorm,
    Linear,
    Quantize,
    Select,
    SplitKvWrite,
)

SEQUENCES = [some_tokens(n, seed=n) for n in (70, 33, 1, 7)]


@pytest.fixture(scope="module")
def model():
    return make_encoder()


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int8:32", "int4:32"])
def test_hidden_states_do_not_depend_on_the_batch(isa, model, weights, kv):
    def player(**options):
        return Player(model, SEQUENCES, isa=isa, weights=weights, kv=kv, **options)

    want = player().alone()
    assert np.isfinite(want).all()
    assert want.std() > 0.1
    for threads, fuse in ((1, True), (1, False), (2, True), (3, False)):
        got = player(threads=threads, fuse=fuse).together()
        np.testing.assert_array_equal(got, want, f"{threads=} {fuse=}")


@pytest.mark.parametrize("changes", [{}, {"activation": "gelu_tanh"}, {"token_types": 0}])
def test_native_agrees_with_the_reference(isa, changes):
    model = make_encoder(offset=3, **changes)
    want = Player(model, SEQUENCES, executor="reference").together()
    got = Player(model, SEQUENCES, isa=isa, weights="f32", kv="f32").together()
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
    torch = Player(model, SEQUENCES, executor="torch").together()
    np.testing.assert_allclose(torch, want, atol=2e-5, rtol=2e-5)


def test_ops_of_a_lowered_encoder(model):
    graph = architectures.build(model.config)
    formats = Counter()  # every name alike
    groups = dict.fromkeys(
        (w for op in graph.ops if isinstance(op, Linear) for w in op.weights), 32
    )
    lowered = lower(graph, dict.fromkeys(groups, "int8:32") | formats, groups, fuse=True)
    kinds = Counter(type(op) for op in lowered.ops)
    assert kinds[SplitKvWrite] == kinds[Attention] == 2
    assert kinds[Linear] == 4 * 2
    assert {op.epilogue for op in lowered.ops if isinstance(op, Linear)} == {"store", "add", "gelu"}
    assert kinds[LayerNorm] == 1 + 2 * 2
    assert kinds[Add] == kinds[Select] == 1
    assert kinds[KvWrite] == kinds[Gelu] == 0
    plain = lower(graph, dict.fromkeys(groups, "f32"), dict.fromkeys(groups, 0), fuse=False)
    assert plain.ops == graph.ops
    assert kinds[Quantize] == 4 * 2


@pytest.mark.parametrize("kind", ["gelu read twice", "another epilogue"])
def test_gelu_stays_apart(kind, model):
    from hasten.models.graph import GraphBuilder

    g = GraphBuilder()
    x = g.embed("embed", 32)
    y = g.linear(x, "a", 32)
    z = g.add(g.gelu(y), y) if kind == "gelu read twice" else g.gelu(g.add(x, y))
    graph = lower(g.finish(z), {"a": "f32"}, {"a": 0}, fuse=True)
    assert Counter(type(op) for op in graph.ops)[Gelu] == 1


def test_an_engine_refuses_an_encoder(model):
    with pytest.raises(UsageError, match=r"tiny \(bert\) gives embeddings.*hasten embed"):
        Engine(model)


MODELS = {
    "bert": ("BertModel", {"max_position_embeddings": 64, "pad_token_id": 0}),
    "bert with a head": ("BertForMaskedLM", {"max_position_embeddings": 64}),
    "gelu_new": ("BertModel", {"hidden_act": "gelu_new", "max_position_embeddings": 64}),
    "roberta": ("RobertaModel", {}),
    "xlm-roberta with a head": ("XLMRobertaForMaskedLM", {"type_vocab_size": 1}),
    "camembert": ("CamembertModel", {}),
    "distilbert": ("DistilBertModel", {}),
    "distilbert with a head": ("DistilBertForMaskedLM", {}),
}


@pytest.mark.parity
@pytest.mark.parametrize(("name", "changes"), MODELS.values(), ids=MODELS.keys())
def test_random_models(isa, name, changes, tmp_path):
    import torch

    made = save_random_encoder(name, tmp_path, **changes)
    # Not the padding token, to which RoBERTa gives no position.
    tokens = np.random.default_rng(0).integers(2, 77, 64)
    with torch.no_grad():
        output = made(torch.tensor(tokens[None]), output_hidden_states=True)
    want = output.hidden_states[-1][0].numpy()
    model = load_model(str(tmp_path))
    assert model.config.max_position == 64
    for options in ({"weights": "f32", "kv": "f32", "isa": isa}, {"executor": "reference"}):
        got = Player(model, [tokens.tolist()], **options).together()
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


BERT = {"model_type": "bert", "hidden_size": 40, "num_attention_heads": 4, "vocab_size": 77}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"position_embedding_type": "relative_key"}, UnsupportedModelError, "relative_key"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "'relu'; allowed: gelu"),
        ({"is_decoder": True}, UnsupportedModelError, "is_decoder"),
        ({"type_vocab_size": -1}, ModelFileError, "type_vocab_size is -1"),
        ({"max_position_embeddings": 0}, ModelFileError, "max_position"),
        ({"num_attention_heads": 3}, ModelFileError, "3 attention heads in a width of 40"),
        ({"model_type": "roberta", "pad_token_id": 600}, ModelFileError, "position"),
    ],
)
def test_configurations_that_do_not_run(changes, error, words):
    with pytest.raises(error, match=words):
        read_encoder(BERT | changes)


def test_positions_of_the_roberta_family_begin_after_the_padding_token():
    config = read_encoder(BERT | {"model_type": "xlm-roberta", "max_position_embeddings": 514})
    assert (config.model_type, config.max_position) == ("roberta", 512)
    assert config.encoder.position_offset == 2


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("roberta.embeddings.position_ids", None),
        ("pooler.dense.bias", None),
        ("cls.predictions.decoder.weight", None),
        ("lm_head.decoder.bias", None),
        (
            "distilbert.transformer.layer.1.attention.q_lin.bias",
            "encoder.layer.1.attention.self.query.bias",
        ),
        ("transformer.layer.0.output_layer_norm.bias", "encoder.layer.0.output.LayerNorm.bias"),
        ("encoder.layer.0.surprise", "encoder.layer.0.surprise"),
    ],
)
def test_tensor_names(name, want):
    assert encoder_tensor_name(name) == want
