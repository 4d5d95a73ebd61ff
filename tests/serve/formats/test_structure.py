"""Outputs that must call a tool do, out of random models and a real one."""

import json

import jsonschema
import pytest
from templates import TEMPLATES, template
from test_format import USER, WEATHER, tool
from tiny import make_model
from tiny_tokenizers import sentencepiece_metadata, tiny_byte_level, tiny_sentencepiece
from tokenizers import AddedToken

from hasten.errors import UsageError
from hasten.generation import Engine
from hasten.generation.structured import StructureCompiler
from hasten.models.tokenizer import Tokenizer
from hasten.models.tokenizer_files import Parts
from hasten.serve.formats import find_format
from hasten.serve.jobs import Conversation, ToolChoice
from hasten.types import EngineOptions, SamplingParams

SIZES = tool(
    "si\"ze's",
    big={"type": "boolean"},
    kind={"enum": ["a\nb", 'c"d']},
    at={"$ref": "#/$defs/place"},
)
SIZES["function"]["parameters"]["$defs"] = {
    "place": {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["x"],
        "additionalProperties": False,
    }
}
PLAIN = tool("plain")
NO_SCHEMA = {"type": "function", "function": {"name": "bare"}}
REQUIRED = ToolChoice("required")


def byte_level(*special):
    backend = tiny_byte_level()
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    return Tokenizer(Parts(backend, {}, frozenset({2})))


def sentencepiece():
    metadata = sentencepiece_metadata(tiny_sentencepiece("bpe"), "llama")
    return Tokenizer.from_gguf({**metadata, "tokenizer.ggml.eos_token_id": 2})


MARKS = ("[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<|/tool_call|>", "<think>", "</think>")
TOKENIZERS = {
    "text": byte_level,
    "special": lambda: byte_level("<tool_call>", "</tool_call>", *MARKS),
    "sentencepiece": sentencepiece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def engine(request):
    tokenizer = TOKENIZERS[request.param]()
    model = make_model(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size, max_position=2048)
    with Engine(model, EngineOptions(threads=1, max_context=2048)) as made:
        yield made


def calls_of(form, conversation, outputs, prompt=""):
    """Name and arguments of each call, and all other text."""
    splitter = form.splitter(prompt, conversation)
    calls, other = {}, ""
    for text in [*(out.text for out in outputs), None]:
        for part in splitter.finish() if text is None else splitter.push(text):
            if part.kind == "call":
                calls.setdefault(part.number, [part.name, ""])[1] += part.text
            else:
                other += part.text
    return [(name, json.loads(text)) for name, text in calls.values()], other


def force(engine, form, conversation, prompt="", **sampling):
    params = {"max_tokens": 1500, "temperature": 1.0} | sampling
    structure = form.structure(conversation, prompt)
    outputs = list(
        engine.generate(
            [5, 6, 7],
            SamplingParams(structure=structure, keep_special=form.keep_special, **params),
        )
    )
    return outputs, *calls_of(form, conversation, outputs, prompt)


@pytest.mark.parametrize("name", [*TEMPLATES])
def test_a_random_model_calls(engine, name):
    """One of the tools that have a bounded schema, with arguments that it allows."""
    form = find_format(template(name), engine.model.tokenizer)
    tools = [SIZES, PLAIN, NO_SCHEMA]
    schemas = {t["function"]["name"]: t["function"].get("parameters", {}) for t in tools}
    choice = ToolChoice("required", parallel=False)
    conversation = Conversation([USER], tools, choice, {"enable_thinking": False})
    for seed in range(4):
        outputs, calls, other = force(engine, form, conversation, seed=seed)
        assert (outputs[-1].finish_reason, other) == ("stop", "")
        ((tool_name, arguments),) = calls
        jsonschema.validate(arguments, schemas[tool_name])
        assert set(arguments) <= set(schemas[tool_name].get("properties", {}))


@pytest.mark.parametrize("name", ["qwen", "mistral", "mistral3", "granite3", "phi4", "qwen-coder"])
@pytest.mark.parametrize("parallel", [True, False])
def test_several_calls_or_one(engine, name, parallel):
    form = find_format(template(name), engine.model.tokenizer)
    choice = ToolChoice("required", parallel=parallel)
    structure = form.structure(Conversation([USER], [PLAIN], choice))
    call = {"name": "plain", "arguments": {}}
    for count in (1, 2, 16):
        text = form.syntax.write([call] * count)
        assert takes(engine, structure, *pieces_of(text, form.special)) == (parallel or count == 1)
    assert not takes(engine, structure, *pieces_of(form.syntax.write([call] * 17), form.special))
    assert not takes(engine, structure, "Hello")


def takes(engine, structure, *pieces):
    """Whether a grammar takes these to their end; numbers are tokens."""
    compiler = StructureCompiler(engine.model.tokenizer, engine.model.config.vocab_size)
    guide = compiler.compile(structure, [2])
    vocabulary = compiler.prepare()[0]
    try:
        for piece in pieces:
            for token in [piece] if isinstance(piece, int) else vocabulary(piece):
                if guide.complete or not guide.limits()[token] > 0:
                    return False
                guide.accept(token)
        return guide.complete or bool(guide.limits()[2] > 0)
    finally:
        compiler.close()


def pieces_of(text, special):
    """A text cut at its special tokens, with their numbers."""
    for mark, number in special.items():
        if mark in text:
            before, after = text.split(mark, 1)
            return [*pieces_of(before, special), number, *pieces_of(after, special)]
    return [text] if text else []


def test_a_named_tool_is_the_one(engine):
    form = find_format(template("chatml"), engine.model.tokenizer)
    conversation = Conversation([USER], [PLAIN, SIZES], ToolChoice("required", "plain"))
    for seed in range(3):
        assert force(engine, form, conversation, seed=seed)[1:] == ([("plain", {})], "")


@pytest.mark.parametrize("name", ["qwen", "mistral3", "granite3"])
@pytest.mark.parametrize("begun", [True, False])
def test_reasoning_may_come_first(engine, name, begun):
    """What the grammar takes, token by token."""
    form = find_format(template(name), engine.model.tokenizer)
    choice = ToolChoice("required", parallel=False)
    conversation = Conversation([USER], [PLAIN], choice, {"thinking": True})
    opens, closes = form.thoughts.opens[0], form.thoughts.closes[0]
    structure = form.structure(conversation, opens if begun else "")
    call = form.syntax.write([{"name": "plain", "arguments": {}}])

    def taken(text):
        return takes(engine, structure, *pieces_of(text, form.special))

    thought = f"I see.\n{closes}\n\n{call}"
    assert taken(thought) == begun
    assert taken(opens + thought) == (not begun or opens not in form.special)
    assert taken(call) == (not begun)
    assert not taken(f"I see. {call}")


def test_nothing_is_demanded_of_a_free_choice():
    form = find_format(template("qwen"))
    for mode in ("auto", "none"):
        assert form.structure(Conversation([USER], [WEATHER], ToolChoice(mode))) is None


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([], REQUIRED, "there are no tools"),
        ([WEATHER], ToolChoice("required", "other"), "names 'other'"),
        ([{"function": {"name": "t", "parameters": [1]}}], REQUIRED, "parameters of the tool 't'"),
        ([{"function": {"name": "t", "parameters": {"properties": 5}}}], REQUIRED, "of an object"),
        ([tool("t", a={"description": "x" * 70_000})], REQUIRED, "allowed: up to 65536"),
    ],
)
def test_demands_that_cannot_be_met(tools, choice, message):
    with pytest.raises(UsageError) as caught:
        find_format(template("qwen")).structure(Conversation([USER], tools, choice))
    assert message in str(caught.value)


def test_schemas_that_cannot_be_used_are_refused(engine):
    form = find_format(template("qwen"))
    bad = tool("t", a={"not": {}})
    with pytest.raises(UsageError, match="not"):
        force(engine, form, Conversation([USER], [bad], REQUIRED))


@pytest.mark.model
@pytest.mark.parametrize("name", [*TEMPLATES])
def test_smollm2_calls_a_tool(smollm2, name):
    engine, model = smollm2
    form = find_format(template(name), model.tokenizer)
    tools = [tool("weather", city={"type": "string", "maxLength": 20}), PLAIN]
    conversation = Conversation([USER], tools, ToolChoice("required", "weather"))
    plain = find_format(model.chat_template, model.tokenizer)
    text = model.chat_template.render(plain.prepare(conversation).messages)
    params = SamplingParams(max_tokens=100, structure=form.structure(conversation))
    outputs = list(engine.generate(model.tokenizer.encode(text, add_special=False), params))
    calls, other = calls_of(form, conversation, outputs)
    assert other == ""
    ((called, arguments),) = calls
    assert called == "weather"
    assert set(arguments) == {"city"}
    assert isinstance(arguments["city"], str)


@pytest.fixture(scope="module")
def smollm2():
    from hasten.models import load_model

    model = load_model("smollm2")
    with Engine(model, EngineOptions(threads=1, max_context=1024)) as engine:
        yield engine, model
