"""A proof on what the search has seen is refused, be it text or items."""

import json

import pytest

from hasten.errors import UsageError
from hasten.measure.corpus import cut_windows, default_corpus
from hasten.measure.tasks.reading import parse_tasks
from hasten.models import load_model
from hasten.optimize.apart import check_data_apart


def questions(texts):
    lines = (json.dumps({"text": text, "answer": "x"}) for text in texts)
    return parse_tasks("questions.jsonl", "\n".join(lines).encode())


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


def test_halves_of_items_and_of_text_are_apart(model):
    words = ["one", "two", "cat", "dog", "house", "tree", "sun"]
    asked = [f"what is a {one} of {other}" for one in words for other in words]
    first, second = questions(asked).halves()
    assert first.tasks
    assert second.tasks
    windows = [
        cut_windows(half, model.tokenizer, tokens=600, context=128)
        for half in default_corpus().halves()
    ]
    check_data_apart(model, [windows[0], first], [windows[1], second])


def test_the_same_item_on_both_sides_is_refused(model):
    first = questions(["what is one", "what is two"])
    second = questions(["what is three", "what is two"])
    with pytest.raises(UsageError, match=r"1 texts of questions\.jsonl .* the first is number 2"):
        check_data_apart(model, [first], [second])


def test_an_item_that_quotes_the_calibration_text_is_refused(model):
    text = default_corpus().halves()[0]
    windows = cut_windows(text, model.tokenizer, tokens=600, context=128)
    quoting = questions(["something else", "please explain: " + text.text[130:200]])
    with pytest.raises(UsageError, match="1 texts of questions"):
        check_data_apart(model, [windows], [quoting])
    check_data_apart(model, [windows], [questions(["so", "that"])])
