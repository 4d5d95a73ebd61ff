"""Special tokens leave their text in the output where a request asks for it."""

import pytest
from tiny import make_model
from tiny_tokenizers import tiny_byte_level

from hasten.generation import Engine
from hasten.models.tokenizer import Tokenizer
from hasten.models.tokenizer_files import Parts
from hasten.types import EngineOptions, SamplingParams, Structure

START, END = 1, 2  # <|im_start|>, <|im_end|>


@pytest.fixture(scope="module")
def engine():
    tokenizer = Tokenizer(Parts(tiny_byte_level(), {}, frozenset({END})))
    model = make_model(tokenizer=tokenizer, vocab_size=tokenizer.vocab_size)
    with Engine(model, EngineOptions(threads=1, max_context=64)) as made:
        yield made


def text_of(engine, **sampling):
    outputs = engine.generate([5, 6, 7], SamplingParams(max_tokens=2, **sampling))
    return "".join(output.text for output in outputs)


@pytest.mark.parametrize(
    "structure",
    [None, Structure("grammar", f"start: <[{START}]> <[{START}]>")],
    ids=["free", "held"],
)
def test_a_special_token_leaves_its_text_only_where_it_is_asked_for(engine, structure):
    wish = {START: 100.0}
    kept = text_of(engine, logit_bias=wish, structure=structure, keep_special=True)
    assert kept == "<|im_start|><|im_start|>"
    assert text_of(engine, logit_bias=wish, structure=structure) == ""


def test_the_token_that_ends_the_output_never_does(engine):
    assert text_of(engine, logit_bias={END: 100.0}, keep_special=True) == ""
    assert text_of(engine, logit_bias={START: 100.0}, stop_tokens=(START,), keep_special=True) == ""


def test_a_stop_string_may_be_a_special_token(engine):
    wish = {START: 100.0}
    assert text_of(engine, logit_bias=wish, stop=("start|><",), keep_special=True) == "<|im_"
