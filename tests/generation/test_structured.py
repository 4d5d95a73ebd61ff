"""Outputs that follow a structure, forced out of random models."""

import json
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
from letters import PIECES
from letters import Tokenizer as Letters
from tiny import make_model, some_tokens
from tiny_tokenizers import sentencepiece_metadata, tiny_byte_level, tiny_sentencepiece

from hasten.errors import UsageError
from hasten.generation import Engine
from hasten.generation.kvcache import kv_bytes_per_block
from hasten.generation.structured import StructureCompiler
from hasten.models.tokenizer import Tokenizer
from hasten.models.tokenizer_files import Parts
from hasten.types import EngineOptions, Request, SamplingParams, Structure

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc", None, True]}, "maxItems": 3},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": -9, "maximum": 9}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS = [
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"type": "string", "pattern": "^[a-f]{3}$"}, {"const": 17}]},
    {"type": "string", "format": "date"},
]


def byte_level(ends):
    """Two of the vocabulary's special tokens end an output."""
    return Tokenizer(Parts(tiny_byte_level(), {}, frozenset(ends)))


def sentencepiece(ends):
    metadata = sentencepiece_metadata(tiny_sentencepiece("bpe"), "llama")
    metadata["tokenizer.ggml.eos_token_id"] = next(iter(ends))
    return Tokenizer.from_gguf(metadata)


def engine_of(tokenizer, **options):
    # A few ids more than the tokenizer has, as padded vocabularies bring.
    model = make_model(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size + 5, max_position=512)
    return Engine(model, EngineOptions(**{"max_context": 512, "threads": 1} | options))


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def engine(request):
    with engine_of(request.param({2})) as made:
        yield made


@pytest.fixture(scope="module")
def byte_engine():
    with engine_of(byte_level({0, 2}), max_sequences=4) as made:
        yield made


def answer(engine, structure, **sampling):
    """The text of one request, and its last output."""
    params = {"max_tokens": 400, "temperature": 1, "structure": structure} | sampling
    outputs = list(engine.generate([5, 6, 7], SamplingParams(**params)))
    return "".join(out.text for out in outputs), outputs[-1]


def schema(value):
    return Structure("json_schema", json.dumps(value))


@pytest.mark.parametrize("value", SCHEMAS, ids=["person", "array", "any", "date"])
def test_json_validates(engine, value):
    for seed, more in enumerate([{}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 0}]):
        text, last = answer(engine, schema(value), seed=seed, **more)
        assert last.finish_reason == "stop"
        jsonschema.validate(json.loads(text), value, jsonschema.Draft202012Validator)


def test_any_json(byte_engine):
    for text in ("{}", "true"):
        for seed in range(3):
            written, last = answer(byte_engine, Structure("json_schema", text), seed=seed)
            if last.finish_reason == "stop":
                json.loads(written)
            else:
                assert last.finish_reason == "length"


@pytest.mark.parametrize(
    "pattern",
    [
        r"(yes|no)",
        r" [a-z]{3}",
        r"[A-Z][a-z]{2,6} \d{1,3}(\.\d\d)?",
        r"é{2}ü|😀{3}",
        r"(a|b){0,30}c",
        r"/[^/\n]{1,5}/\n",
    ],
)
def test_texts_match_the_regular_expression(engine, pattern):
    for seed in range(4):
        text, last = answer(engine, Structure("regex", pattern), seed=seed)
        assert last.finish_reason == "stop"
        assert re.fullmatch(pattern, text), text


def test_a_grammar(engine):
    brackets = Structure("grammar", 'start: e\ne: "x" | "(" e ")" | "(" e e ")"')
    ended = 0
    for seed in range(6):
        text, last = answer(engine, brackets, seed=seed)
        depths = np.cumsum([{"(": 1, ")": -1}.get(letter, 0) for letter in text])
        assert (depths >= 0).all()
        assert set(text) <= set("()x")
        if last.finish_reason == "stop":
            ended += 1
            assert depths[-1] == 0
    assert ended > 0


def test_an_output_that_may_go_on_ends_with_an_end_token(byte_engine):
    """With each of the model's; a model without any goes on to its limit."""
    some = Structure("regex", "(ab)+")
    found = set()
    for seed in range(12):
        text, last = answer(byte_engine, some, seed=seed, logit_bias={0: 4, 2: 4})
        assert re.fullmatch("(ab)+", text)
        assert last.finish_reason == "stop"
        found.update(last.tokens)
    assert found == {0, 2}
    model = make_model(tokenizer=Letters(), vocab_size=len(PIECES))
    with Engine(model, EngineOptions(threads=1)) as engine:
        text, last = answer(engine, some, max_tokens=20)
        assert (last.finish_reason, set(text)) == ("length", {"a", "b"})
        assert answer(engine, Structure("regex", "(ab){3}"))[0] == "ababab"


def test_nothing_but_the_structure(byte_engine):
    """Bias, penalties and the model's wishes count among the tokens that may come."""
    forced = SamplingParams(logit_bias={2: 100, 0: 100, 9: 100}, repetition_penalty=5, logprobs=3)
    params = {name: getattr(forced, name) for name in ("logit_bias", "repetition_penalty")}
    text, last = answer(byte_engine, Structure("regex", "[ab]{4}!"), **params, logprobs=3)
    assert re.fullmatch("[ab]{4}!", text)
    # Log probabilities are the model's own, so the likeliest may be what was not allowed.
    assert last.logprobs[0].rank > 1
    assert len(last.logprobs[0].top) == 3


def test_stop_strings_and_stop_tokens(byte_engine):
    digits = Structure("regex", "[0-9]{40}")
    whole, _ = answer(byte_engine, digits, seed=4)
    text, last = answer(byte_engine, digits, seed=4, stop=(whole[9:11],))
    assert last.finish_reason == "stop"
    assert text == whole[: whole.find(whole[9:11])]
    # A stop token may come where the output may end, and where the structure takes it as text.
    stop = 1
    text, last = answer(
        byte_engine, Structure("regex", "(ab)+"), stop_tokens=(stop,), logit_bias={stop: 100}
    )
    assert (text, last.tokens) == ("ab", (stop,))


def test_a_limit_cuts_the_structure_short(byte_engine):
    text, last = answer(byte_engine, Structure("regex", "[0-9]{40}"), max_tokens=3)
    assert last.finish_reason == "length"
    assert re.fullmatch("[0-9]+", text)


REQUESTS = [
    SamplingParams(max_tokens=150, temperature=1, seed=1, structure=schema(PERSON), n=2),
    SamplingParams(max_tokens=120, temperature=1, seed=2),
    SamplingParams(max_tokens=150, temperature=1.2, seed=3, structure=schema(PERSON), top_p=0.9),
    SamplingParams(max_tokens=120, structure=Structure("regex", r"\d{110,}x")),
]


def all_tokens(engine, requests):
    for number, params in enumerate(requests):
        engine.submit(Request(str(number), tuple(some_tokens(40, seed=number)), params))
    tokens = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault((output.request_id, output.index), []).extend(output.tokens)
    return tokens


def test_company_chunks_and_preemption_change_nothing():
    with engine_of(byte_level({2}), max_sequences=1) as engine:
        alone = all_tokens(engine, REQUESTS)
        config = engine.model.config
    assert len(alone) == 5
    assert alone["0", 0] != alone["0", 1]
    for options in ({"max_sequences": 5, "threads": 2}, {"max_sequences": 5, "chunk": 7}):
        with engine_of(byte_level({2}), **options) as engine:
            assert all_tokens(engine, REQUESTS) == alone
    padded = 32  # of a head
    block = kv_bytes_per_block("bf16", config.num_layers, config.num_kv_heads, padded)
    with engine_of(
        byte_level({2}), max_sequences=5, kv_memory=6 * block, max_context=192
    ) as engine:
        assert all_tokens(engine, REQUESTS) == alone
        assert engine.statistics().preemptions > 0


class Slow(ThreadPoolExecutor):
    """A worker that is always late."""

    def submit(self, function, *arguments):
        return super().submit(lambda: (time.sleep(0.002), function(*arguments))[1])


class Immediate:
    """A worker that is done before anybody asks."""

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done

    def shutdown(self, **_options):
        pass


def test_the_speed_of_the_worker_changes_nothing(monkeypatch):
    answers = []
    for worker in (ThreadPoolExecutor, Slow, lambda *_args, **_options: Immediate()):
        monkeypatch.setattr("hasten.generation.structured.ThreadPoolExecutor", worker)
        with engine_of(byte_level({2})) as engine:
            answers.append(answer(engine, schema(PERSON), seed=8)[0])
    assert answers[0] == answers[1] == answers[2]


WRONG = [
    ("json_schema", "{", "not JSON"),
    ("json_schema", "[" * 60_000, "not JSON"),
    ("json_schema", "[]", "it is not an object"),
    ("json_schema", "false", "it is not an object"),
    ("json_schema", '{"type": "foo"}', "Invalid type: foo"),
    ("json_schema", '{"not": {}}', 'Unimplemented keys: ["not"]'),
    ("json_schema", '{"$ref": "#/nope"}', "'/nope' does not exist"),
    ("json_schema", '{"$ref": "http://example.org/x"}', "example.org"),
    ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 3}', "Unsatisfiable schema"),
    ("json_schema", '{"$ref": "#"}', "the structure"),
    ("regex", "(a|b", "unclosed group"),
    ("regex", r"(a)\1", "backreferences are not supported"),
    ("regex", "a(?=b)", "look-ahead"),
    ("regex", "(" * 5000 + ")" * 5000, "the regular expression cannot be used"),
    ("grammar", "", "Empty grammar"),
    ("grammar", "start: foo", 'unknown name: "foo"'),
    ("grammar", "start: start", "the grammar cannot be used"),
    ("grammar", 'root ::= "a"', "Expected token"),
    ("grammar", "start: @other", "unknown grammar"),
    ("xml", "<a/>", "structure is a 'xml'"),
    ("regex", "a" * 65_537, "65537 characters; allowed: up to 65536"),
]


@pytest.mark.parametrize(
    ("kind", "text", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))]
)
def test_structures_that_cannot_be_used(byte_engine, kind, text, message):
    with pytest.raises(UsageError) as caught:
        byte_engine.submit(Request("a", (1,), SamplingParams(structure=Structure(kind, text))))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert not byte_engine.has_work


def test_more_effort_than_allowed(byte_engine):
    """Schemas that grow exponentially are refused, or end as errors, and harm nobody else."""
    product = {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"p{i}": {"const": j}}} for j in (0, 1)]}
            for i in range(14)
        ]
    }
    with pytest.raises(UsageError, match="too"):
        answer(byte_engine, schema(product))


def test_a_structure_needs_a_tokenizer():
    with (
        Engine(make_model(), EngineOptions(threads=1)) as engine,
        pytest.raises(UsageError) as error,
    ):
        engine.submit(Request("a", (1,), SamplingParams(structure=Structure("regex", "a"))))
    assert "needs a tokenizer" in str(error.value)


def test_a_vocabulary_that_cannot_spell_it():
    """Refused where it cannot begin; an output that comes to such a place ends as an error."""
    model = make_model(tokenizer=Letters(), vocab_size=len(PIECES))
    with Engine(model, EngineOptions(threads=1, max_sequences=2)) as engine:
        with pytest.raises(UsageError, match="no token of the vocabulary"):
            answer(engine, Structure("regex", "zebra"))
        free = SamplingParams(max_tokens=9)
        alone = [out.tokens for out in engine.generate([1, 2], free)]
        stuck = SamplingParams(structure=Structure("regex", "(ab|ba){3}[xyz]"))
        engine.submit(Request("stuck", (3, 4), stuck))
        engine.submit(Request("free", (1, 2), free))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
    last = [out for out in outputs if out.request_id == "stuck"][-1]
    assert (last.finish_reason, last.tokens) == ("error", ())
    assert "no token of the vocabulary" in last.error
    assert [out.tokens for out in outputs if out.request_id == "free"] == alone


def test_tokens_of_a_forced_text_spell_it():
    """What llguidance asks a tokenizer for, also where it puts a space before texts."""
    for tokenizer in (byte_level({2}), sentencepiece({2})):
        compiler = StructureCompiler(tokenizer, tokenizer.vocab_size)
        vocabulary, _ = compiler.prepare()
        for text in ('"name"', " a", "hello world", "é", "日本", "{}", ""):
            assert b"".join(vocabulary.tokens[i] for i in vocabulary(text)) == text.encode()
        compiler.close()


@pytest.mark.model
def test_smollm2_fills_in_a_form():
    from hasten.models import load_model

    model = load_model("smollm2")
    form = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "country": {"enum": ["France", "Japan", "Peru"]},
        },
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    question = [{"role": "user", "content": "Name the capital of France and its country as JSON."}]
    prompt = model.tokenizer.encode(model.chat_template.render(question), add_special=False)
    with Engine(model, EngineOptions(max_context=256)) as engine:
        params = SamplingParams(max_tokens=60, structure=schema(form))
        outputs = list(engine.generate(prompt, params))
    value = json.loads("".join(out.text for out in outputs))
    jsonschema.validate(value, form)
    assert value["country"] == "France"
    assert outputs[-1].finish_reason == "stop"
