"""Texts to vectors: the same bits in any company, the right pooling, and nothing cut silently."""

from dataclasses import replace

import numpy as np
import pytest
from encoders import make_encoder
from tiny import make_model, some_tokens

from hasten.errors import CapacityError, UsageError
from hasten.generation.embedding import Embedder, embedder_options
from hasten.generation.executor import make_executor
from hasten.models import load_model
from hasten.models.embedding_settings import EmbeddingSettings
from hasten.types import Batch, EngineOptions

TEXTS = [some_tokens(n, seed=n) for n in (33, 1, 70, 7, 32, 2, 128, 5)]


class Words:
    """A tokenizer: a word of n letters is token n; 1 and 2 stand around each text."""

    prefix, suffix = [1], [2]
    longest_token = 9

    def encode(self, text, *, parse_special):
        assert not parse_special
        return [1, *(len(word) for word in text.split()), 2]


def with_settings(model, **settings):
    """The same model, as if its files said this."""
    made = replace(model)
    made.text = replace(
        model.text, tokenizer=Words, embedding=lambda: EmbeddingSettings(**settings)
    )
    return made


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def decoder():
    return make_model(max_position=128)


def hidden_states(model, tokens):
    """Last hidden states [n, hidden] of one text by the reference executor."""
    model = replace(model, config=replace(model.config, output="hidden"))
    rows = np.arange(len(tokens), dtype=np.int32)
    batch = Batch(
        *(np.asarray(a, np.int32) for a in (tokens, rows, [0, len(tokens)], [range(4)], rows))
    )
    return make_executor(model, EngineOptions(executor="reference"), 4, 128).run(batch)


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_the_pooled_hidden_states(request, isa, kind, pooling):
    model = request.getfixturevalue(kind)
    options = EngineOptions(isa=isa, weights="f32", kv="f32")
    with Embedder(model, options, pooling=pooling) as embedder:
        got = embedder.embed_tokens(TEXTS)
        assert got.dtype == np.float32
        for tokens, vector in zip(TEXTS, got, strict=True):
            hidden = hidden_states(model, tokens).astype(float)
            want = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
            np.testing.assert_allclose(vector, unit(want), atol=3e-6)
    with Embedder(model, options, pooling=pooling, normalize=False) as embedder:
        np.testing.assert_allclose(embedder.embed_tokens(TEXTS[-1:])[0], want, atol=2e-5)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("weights", ["f32", "int8", "int4:32"])
def test_vectors_do_not_depend_on_company(request, isa, kind, weights):
    model = request.getfixturevalue(kind)

    def embed(texts, **changes):
        given = {"isa": isa, "weights": weights, "chunk": 140, "max_context": 128} | changes
        pooling = "mean" if changes.pop("mean", True) else "last"
        with Embedder(model, EngineOptions(**given), pooling=pooling) as embedder:
            return embedder.embed_tokens(texts)

    want = embed(TEXTS)
    alone = np.concatenate([embed([text]) for text in TEXTS])
    np.testing.assert_array_equal(alone, want)
    np.testing.assert_array_equal(embed(TEXTS[::-1])[::-1], want)
    np.testing.assert_array_equal(embed(TEXTS * 3, threads=2)[8:16], want)
    np.testing.assert_array_equal(embed(TEXTS, chunk=1000, threads=3, fuse=False), want)
    if kind == "decoder":
        np.testing.assert_array_equal(embed(TEXTS, chunk=16), want)


def test_a_decoder_of_either_kind_leaves_its_output_out(decoder):
    tied = make_model(tie_embeddings=True)
    for model in (decoder, tied):
        with Embedder(model) as embedder:
            assert "lm_head.weight" not in embedder.formats
            assert (embedder.pooling, embedder.max_tokens) == ("last", model.config.max_position)
        assert model.config.output == "logits"


def test_defaults_of_an_encoder(encoder):
    with Embedder(encoder) as embedder:
        assert (embedder.pooling, embedder.normalize) == ("mean", True)
        assert (embedder.dimensions, embedder.max_tokens) == (40, 128)
        assert embedder.options.kv == "f32"
    assert embedder_options(encoder, kv="int8").kv == "int8"
    assert embedder_options(make_model(), kv=None).kv == "bf16"


def test_files_decide_and_arguments_overrule_them(encoder):
    model = with_settings(encoder, pooling="cls", normalize=False, max_tokens=20)
    with Embedder(model) as embedder:
        assert (embedder.pooling, embedder.normalize, embedder.max_tokens) == ("cls", False, 20)
    options = EngineOptions(max_context=100)
    with Embedder(model, options, pooling="last", normalize=True) as embedder:
        assert (embedder.pooling, embedder.normalize, embedder.max_tokens) == ("last", True, 100)


def test_dimensions_are_cut_before_the_length_is_set_to_one(encoder):
    with Embedder(encoder) as whole, Embedder(encoder, dimensions=16) as cut:
        want, got = whole.embed_tokens(TEXTS), cut.embed_tokens(TEXTS)
    assert got.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(got, np.stack([unit(v[:16]) for v in want]), atol=1e-6)
    for dimensions in (0, 41):
        with pytest.raises(UsageError, match=r"dimensions is .*; allowed: 1 to 40"):
            Embedder(encoder, dimensions=dimensions)


def test_no_texts(encoder):
    with Embedder(encoder) as embedder:
        assert embedder.embed([]).shape == (0, 40)


def test_what_is_too_long_is_refused_or_cut_on_request(encoder):
    model = with_settings(encoder, max_tokens=6)
    with Embedder(model) as embedder:
        with pytest.raises(CapacityError, match="text 2 has 7 tokens; allowed: up to 6"):
            embedder.embed(["a bb", "a bb ccc dd e"])
        with pytest.raises(CapacityError, match="text 1 has 7 tokens"):
            embedder.embed_tokens([[1] * 7])
        (cut,) = embedder.tokenize(["a bb ccc dd eeeee"], truncate=True)
        assert cut.tolist() == [1, 1, 2, 3, 2, 2]
        want = embedder.embed(["a bb ccc dd"])
        np.testing.assert_array_equal(embedder.embed(["a bb ccc dd eeeee"], truncate=True), want)


@pytest.mark.parametrize(
    ("tokens", "words"), [([], "text 2 has no tokens"), ([77], "0 to 76"), ([-1], "0 to 76")]
)
def test_tokens_that_do_not_fit(encoder, tokens, words):
    with Embedder(encoder) as embedder, pytest.raises(UsageError, match=words):
        embedder.embed_tokens([[1], tokens])


@pytest.mark.parametrize("context", [0, 129])
def test_a_limit_beyond_the_model(encoder, context):
    with pytest.raises(UsageError, match=r"max_context is .*; allowed: 1 to 128"):
        Embedder(encoder, EngineOptions(max_context=context))


def test_prompts(encoder):
    prompts = {"query": "find this ", "document": ""}
    model = with_settings(encoder, prompts=prompts, default_prompt="query")
    with Embedder(model) as embedder:
        assert embedder.prompt(None) == embedder.prompt("query") == "find this "
        np.testing.assert_array_equal(
            embedder.embed(["a bb"]), embedder.embed(["find this a bb"], prompt="")
        )
        with pytest.raises(UsageError, match="no prompt 'title'; allowed: query, document"):
            embedder.prompt("title")
    with Embedder(encoder) as embedder:
        assert embedder.prompt(None) == ""
        with pytest.raises(UsageError, match="hold no prompts"):
            embedder.prompt("query")


def test_prompts_that_the_mean_leaves_out(encoder):
    model = with_settings(encoder, pool_prompt=False, normalize=False)
    tokens = [1, 4, 4, 1, 2, 2]
    options = EngineOptions(weights="f32", kv="f32")
    with Embedder(model, options) as embedder:
        assert embedder.prompt_tokens("find this ") == 3
        got = embedder.embed(["a bb"], prompt="find this ")[0]
        np.testing.assert_allclose(got, hidden_states(model, tokens)[3:].mean(axis=0), atol=2e-5)
    with Embedder(with_settings(encoder)) as embedder:
        assert embedder.prompt_tokens("find this ") == 0


def test_texts_are_cut_or_refused_before_they_are_tokenised(encoder):
    model = with_settings(encoder, max_tokens=6)
    with Embedder(model) as embedder:
        with pytest.raises(CapacityError, match="text 1 has 55 characters; allowed: up to 54"):
            embedder.tokenize(["a" * 55])
        (cut,) = embedder.tokenize(["a " * 27 + "bb"], truncate=True)
        assert cut.tolist() == [1, 1, 1, 1, 1, 2]
        (whole,) = embedder.tokenize(["a" * 54])
        assert whole.tolist() == [1, 54, 2]


def test_lower_case_where_the_files_ask_for_it(encoder):
    model = with_settings(encoder, lowercase=True)
    seen = []

    class Keeping(Words):
        def encode(self, text, *, parse_special):
            seen.append(text)
            return [1, 2]

    model.text = replace(model.text, tokenizer=Keeping)
    with Embedder(model) as embedder:
        embedder.tokenize(["Ab C"])
    assert seen == ["ab c"]


def test_progress(encoder):
    seen = []
    with Embedder(encoder) as embedder:
        embedder.embed_tokens(TEXTS * 9, done=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(TEXTS) * 9


SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A monkey is playing drums.",
    "",
    "¿Dónde está la biblioteca? 図書館はどこですか。",
    "def add(a, b):\n    return a + b",
    "Someone in a gorilla costume is playing a set of drums. " * 12,
    "[SEP] is what separates, and [MASK] what hides.",
    "It's 12:30 p.m. on 2024-02-29, isn't it?",
    "A cheetah is running behind its prey.",
    "x",
]


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm")


@pytest.mark.model
@pytest.mark.parity
def test_minilm_in_float32(minilm):
    import torch
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(minilm.path).eval()
    with Embedder(minilm) as embedder:
        tokens = embedder.tokenize(SENTENCES)
        got = embedder.embed(SENTENCES)
        assert set(embedder.formats.values()) == {"f32"}
        alone = np.concatenate([embedder.embed([text]) for text in SENTENCES])
    np.testing.assert_array_equal(got, alone)
    with torch.no_grad():
        want = np.stack(
            [
                unit(theirs(torch.tensor(ids[None].astype(np.int64))).last_hidden_state[0].mean(0))
                for ids in tokens
            ]
        )
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.model
@pytest.mark.parametrize(
    ("weights", "least"), [("bf16", 0.99995), ("int8", 0.993), ("int8:32", 0.995)]
)
def test_minilm_in_fewer_bits(minilm, weights, least):
    with Embedder(minilm) as embedder:
        exact = embedder.embed(SENTENCES)
    with Embedder(minilm, embedder_options(minilm, weights=weights)) as embedder:
        cosines = (embedder.embed(SENTENCES) * exact).sum(axis=1)
    assert cosines.min() > least
    assert cosines.max() < 1 - 1e-7


@pytest.mark.model
def test_minilm_finds_what_is_alike(minilm):
    with Embedder(minilm) as embedder:
        assert (embedder.pooling, embedder.normalize, embedder.max_tokens) == ("mean", True, 256)
        vectors = embedder.embed(SENTENCES)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    assert similar[0].argmax() == 1
    assert similar[3].argmax() == 7
    assert similar[0, 1] == pytest.approx(0.7554, abs=1e-3)  # as the model's card computes it


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_decoders_that_were_saved_without_an_output(tmp_path, family, tied):
    """As Qwen3-Embedding is: no prefix, and no projection unless it is the embedding."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, family + "Config")(
        **DECODER_SHAPE, tie_word_embeddings=tied, head_dim=10
    )
    made = getattr(transformers, family + "Model")(config).eval()
    with torch.no_grad():
        for values in made.parameters():
            if values.ndim > 1:
                values.normal_(0, 2 / values.shape[1] ** 0.5)
    made.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config.output == ("logits" if tied else "hidden")
    with torch.no_grad():
        want = made(torch.tensor([TEXTS[0]])).last_hidden_state[0].double().numpy()
    for pooling, vector in (("last", want[-1]), ("mean", want.mean(axis=0))):
        options = EngineOptions(weights="f32", kv="f32", chunk=20)
        with Embedder(model, options, pooling=pooling) as embedder:
            got = embedder.embed_tokens(TEXTS)[0]
        np.testing.assert_allclose(got, unit(vector), atol=1e-5)


DECODER_SHAPE = {
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 77,
    "max_position_embeddings": 128,
}
