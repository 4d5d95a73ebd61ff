"""Files of labelled items: what they may say, and one clear line about what they may not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.tasks.items import Choice, Custom, Exact, Pattern
from hasten.measure.tasks.reading import MAX_PATTERN, parse_tasks, read_tasks
from hasten.measure.workload import Chat


def parse(*lines, **how):
    return parse_tasks("q.jsonl", "\n".join(map(json.dumps, lines)).encode(), **how)


def test_every_form():
    found = parse(
        {"prompt": "2 + 2?", "answer": "4", "max_tokens": 8, "stop": ["\n"]},
        {"text": "Paris is in", "choices": [" France", " Peru"], "answer": " France"},
        {"text": "Lima is in", "choices": [" France", " Peru"], "answer": 1},
        {"messages": [{"role": "user", "content": "year?"}], "pattern": r"\b\d{4}\b"},
    )
    assert [task.expected for task in found.tasks] == [
        Exact("4"),
        Choice((" France", " Peru"), 0),
        Choice((" France", " Peru"), 1),
        Pattern(r"\b\d{4}\b"),
    ]
    first, second, _, last = found.tasks
    assert (first.line, first.max_tokens, first.stop, first.asked) == (1, 8, ("\n",), "2 + 2?")
    assert first.prompt == Chat(({"role": "user", "content": "2 + 2?"},))
    assert (second.prompt, second.wanted) == ("Paris is in", " France")
    assert last.line == 4
    assert found.as_dict()["kinds"] == {"exact": 1, "choice": 2, "pattern": 1}


def test_with_a_function_of_the_users_any_value_may_be_expected():
    found = parse(
        {"prompt": "a", "expected": {"x": [1]}}, {"prompt": "b", "answer": 3}, custom=True
    )
    assert [task.expected for task in found.tasks] == [Custom({"x": [1]}), Custom(3)]


GOOD = {"prompt": "a", "answer": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"prompt": "x", "answer": NaN}', "NaN is no JSON"),
        ('{"a":' * 5000, "line 2 is not JSON"),
        ({"prompt": "x", "answer": "y", "anwser": "z"}, "unknown key 'anwser'"),
        ({"answer": "y"}, "none of prompt, messages, text"),
        ({"prompt": "x", "text": "x", "answer": "y"}, "'prompt' and 'text'"),
        ({"prompt": "x"}, "none of answer, pattern, expected"),
        ({"prompt": "x", "answer": "y", "pattern": "y"}, "'answer' and 'pattern'"),
        ({"prompt": "", "answer": "y"}, "a text that is not empty"),
        ({"prompt": 3, "answer": "y"}, "'prompt' 3"),
        ({"prompt": "\ud800", "answer": "y"}, "surrogate"),
        ({"prompt": "x", "answer": ""}, "'answer' ''"),
        ({"prompt": "x", "answer": 5}, "'answer' 5"),
        ({"prompt": "x", "expected": 5}, "--score"),
        ({"prompt": "x", "choices": ["a"], "answer": 0}, "2 to 64"),
        ({"prompt": "x", "choices": ["a", "a"], "answer": 0}, "each text once"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "0 to 1"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": "c"}, "one of the choices"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": True}, "one of the choices"),
        ({"prompt": "x", "choices": ["a", "b"], "pattern": "a"}, "'choices' and no 'answer'"),
        ({"prompt": "x", "pattern": "("}, "which is none"),
        ({"prompt": "x", "pattern": "a" * (MAX_PATTERN + 1)}, f"up to {MAX_PATTERN}"),
        ({"prompt": "x", "answer": "y", "max_tokens": 0}, "max_tokens 0"),
        ({"prompt": "x", "answer": "y", "max_tokens": True}, "max_tokens True"),
        ({"prompt": "x", "answer": "y", "stop": "z"}, "'stop' 'z'"),
        ({"messages": [], "answer": "y"}, "'messages' []"),
        ({"messages": [{"role": "user"}], "answer": "y"}, "'messages'"),
        ({"prompt": "a", "answer": "c"}, "lines 1 and 2 ask the same"),
    ],
)
def test_a_wrong_line_is_named(line, message):
    second = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(UsageError) as caught:
        parse_tasks("q.jsonl", f"{json.dumps(GOOD)}\n{second}\n".encode())
    assert message in str(caught.value)
    assert "q.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_that_say_the_same_count_once():
    found = parse(GOOD, {"prompt": "c", "answer": "d"}, GOOD)
    assert len(found.tasks) == 2
    assert found.duplicates == 1


def test_files_without_items_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no items"):
        parse_tasks("q.jsonl", b"\n \n")
    with pytest.raises(UsageError, match="not UTF-8: invalid start byte at byte 3"):
        parse_tasks("q.jsonl", b"abc\xff")
    with pytest.raises(UsageError, match="cannot read items"):
        read_tasks(tmp_path / "none.jsonl")


def test_halves_split_by_the_item_alone():
    items = [{"prompt": f"question {at}", "answer": "x"} for at in range(400)]
    first, second = parse(*items).halves()
    assert len(first.tasks) + len(second.tasks) == 400
    assert 150 < len(first.tasks) < 250
    fewer, _ = parse(*reversed(items[::2])).halves()
    assert {one.asked for one in fewer.tasks} == {
        one.asked for one in first.tasks if int(one.asked.split()[1]) % 2 == 0
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = (
    "prompt",
    "messages",
    "text",
    "answer",
    "choices",
    "pattern",
    "expected",
    "max_tokens",
    "stop",
)


def read_or_words(content, **how):
    """The items, or the words in which they are refused."""
    try:
        return parse_tasks("q.jsonl", content, **how)
    except UsageError as error:
        return str(error)


@settings(max_examples=100)
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), max_size=3),
    st.booleans(),
)
def test_any_json_is_read_or_refused_in_words(lines, custom):
    found = read_or_words("\n".join(map(json.dumps, lines)).encode(), custom=custom)
    assert isinstance(found, str) or 1 <= len(found.tasks) <= len(lines)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(content):
    assert read_or_words(content)
