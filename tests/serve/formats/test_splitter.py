"""Outputs come apart into content, reasoning and calls, however they come in pieces."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import SYNTAXES, THOUGHTS, cuts, joined, run, split

from hasten.serve.formats import Splitter

HERMES = SYNTAXES["hermes"]
TAGS = THOUGHTS["tags"]
BERN = '{"city": "Bern"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {BERN}}}\n</tool_call>'

MARKS = [
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<response>", "</response>"),
    *("Here is my thought process:", "Here's my response:", "<tool_call>", "</tool_call>"),
    *("<|tool_call|>", "<|/tool_call|>", "functools", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"),
    *("[CALL_ID]", "<function=", "</function>", "<parameter=", "</parameter>", "weather", "city"),
    *(
        '{"name": "f", "arguments": {',
        '"name"',
        '"arguments"',
        '"parameters"',
        '"',
        "\\",
        "\\u00e9",
    ),
    *("{", "}", "[", "]", ":", ",", ";", ">", " ", "\n", "null", "1", "<", "[T", "</", "é", "x"),
]
soups = st.lists(st.sampled_from(MARKS), max_size=24).map("".join)


@pytest.mark.parametrize("thoughts", THOUGHTS)
@pytest.mark.parametrize("syntax", [None, *SYNTAXES])
@settings(deadline=None, max_examples=25)
@given(soups, st.booleans(), st.data())
def test_any_cut_gives_the_same_parts(syntax, thoughts, text, thinking, data):
    arguments = (SYNTAXES.get(syntax), THOUGHTS[thoughts])
    thinking = thinking and thoughts != "none"
    whole = joined(run([text], *arguments, thinking=thinking))
    assert joined(run(data.draw(cuts(text)), *arguments, thinking=thinking)) == whole
    assert joined(run(list(text), *arguments, thinking=thinking)) == whole


@pytest.mark.parametrize("syntax", [None, *SYNTAXES])
@settings(deadline=None, max_examples=60)
@given(soups)
def test_text_without_calls_and_reasoning_is_content_to_the_letter(syntax, text):
    content, _, calls = split(text, SYNTAXES.get(syntax))
    if not calls:
        assert content == text


words = st.text("aé<[{ \n.", max_size=8).filter(lambda text: text == text.strip())
strings = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["weather", "f", "get-it.now", "a_b"])


@pytest.mark.parametrize("syntax", sorted(set(SYNTAXES) - {"qwen-coder", "llama"}))
@settings(deadline=None, max_examples=25)
@given(
    words,
    words,
    st.lists(
        st.tuples(NAMES, st.dictionaries(strings, values, max_size=3)), min_size=1, max_size=3
    ),
    st.data(),
)
def test_what_is_written_is_read(syntax, reasoning, content, calls, data):
    """With reasoning and content before the calls."""
    written = SYNTAXES[syntax].write([{"name": n, "arguments": a} for n, a in calls])
    text = f"<think>\n{reasoning}\n</think>\n\n{content}\n{written}"
    found = joined(run(data.draw(cuts(text)), SYNTAXES[syntax], TAGS))
    assert found[:2] == (content, reasoning)
    assert [(name, json.loads(arguments)) for name, arguments in found[2]] == calls


keys = st.text("abc_é ", min_size=1, max_size=6).filter(lambda key: key == key.strip())


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(keys, strings | values.filter(lambda v: not isinstance(v, str))), st.data())
def test_parameters_in_tags(arguments, data):
    """Texts as they are, other values as JSON."""
    kinds = {str: "string", bool: "boolean", int: "integer", type(None): "null"}
    properties = {
        key: {"type": kinds.get(type(value), "array" if isinstance(value, list) else "object")}
        for key, value in arguments.items()
    }
    written = SYNTAXES["qwen-coder"].write([{"name": "f", "arguments": arguments}])
    found = joined(
        run(
            data.draw(cuts(written)),
            SYNTAXES["qwen-coder"],
            tools={"f": {"type": "object", "properties": properties}},
        )
    )
    assert found[:2] == ("", "")
    assert [(name, json.loads(text)) for name, text in found[2]] == [("f", arguments)]


TAGGED = """\
<tool_call>
<function=weather>
<parameter=city>
Bern
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""
READ = {
    "hermes": [
        (f"Let me see.\n{CALL}", "Let me see.", [("weather", BERN)]),
        (f"{CALL}\n{CALL}\nDone.", "Done.", [("weather", BERN)] * 2),
        (f"{CALL}{CALL}", "", [("weather", BERN)] * 2),
        ('<tool_call>{"name":"f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name":"f","arguments":"{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"id": 7, "name": "f", "arguments": {}, "x": [1]}</tool_call>!', "!", "f"),
        (f'<tool_call>[{{"name":"f"}},{{"name":"weather","arguments":{BERN}}}]</tool_call>', "",
         [("f", "{}"), ("weather", BERN)]),
        ('<tool_call>{"name": "f", "arguments": {"a": "}</tool_call>{"}}', "",
         [("f", '{"a": "}</tool_call>{"}')]),
        ('<tool_call>{"name": "f", "arguments": {}', "", [("f", "{}")]),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', "", [("unknown", "{}")]),
    ],
    "granite": [
        (f'<|tool_call|>[{{"name": "weather", "arguments": {BERN}}}]', "", [("weather", BERN)]),
        (f'<tool_call> [{{"name": "weather", "arguments": {BERN}}}]', "", [("weather", BERN)]),
    ],
    "phi": [
        ('<|tool_call|>{"name": "f", "arguments": {}}<|/tool_call|>', "", [("f", "{}")]),
        ('functools[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
        ("import functools\n", "import functools\n", []),
    ],
    "llama": [
        (f'{{"name": "weather", "parameters": {BERN}}}', "", [("weather", BERN)]),
        (f'\n<|python_tag|>{{"type": "function", "name": "weather", "parameters": {BERN}}}', "",
         [("weather", BERN)]),
        ('{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}', "", [("f", "{}")] * 2),
        ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
        ('{"name": "Bob"}', '{"name": "Bob"}', []),
        ('<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
        ('See: {"name": "f", "parameters": {}}', 'See: {"name": "f", "parameters": {}}', []),
    ],
    "mistral": [
        (f'[TOOL_CALLS] [{{"name": "weather", "arguments": {BERN}, "id": "abcdefghi"}}]', "",
         [("weather", BERN)]),
        (f"Hm.[TOOL_CALLS]weather[ARGS]{BERN}[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{{}}", "Hm.",
         [("weather", BERN), ("f", "{}")]),
        (f"[TOOL_CALLS]weather{BERN}", "", [("weather", BERN)]),
        ("[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    ],
    "qwen-coder": [
        (TAGGED, "", [("weather", '{"city": "Bern", "days": 3}')]),
        ("<function=weather><parameter=city>\"a\\\nb</parameter></function> ok", "ok",
         [("weather", '{"city": "\\"a\\\\\\nb"}')]),
        ("<tool_call><function=f></function></tool_call>", "", [("f", "{}")]),
        ("<function=f><parameter=x>\nTrue\n</parameter></function>", "", [("f", '{"x": true}')]),
        ("<function=f><parameter=x>\nNaN\n</parameter></function>", "", [("f", '{"x": "NaN"}')]),
        ("<function=weather><parameter=days>\nmany\n</parameter></function>", "",
         [("weather", '{"days": "many"}')]),
        ("Use <function=f> so.", "Use <function=f> so.", []),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("syntax", "text", "content", "calls"),
    [(name, *case) for name, cases in READ.items() for case in cases],
)
def test_calls_are_read(syntax, text, content, calls):
    wanted = [(calls, "{}")] if isinstance(calls, str) else calls
    assert split(text, SYNTAXES[syntax]) == (content, "", wanted)


BROKEN = {
    "hermes": [
        "<tool_call>",
        "<tool_call>\n",
        "<tool_call>hello</tool_call>",
        '<tool_call>\n{"name": "f", "argu',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 7}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "' + "n" * 300 + '", "arguments": {}}',
        "<tool_call>[]</tool_call>",
        "</tool_call> and <tool_cal",
    ],
    "mistral": ["[TOOL_CALLS]", "[TOOL_CALLS]weather", "[TOOL_CALLS]weather[ARGS] none", "[TOOL_"],
    "qwen-coder": ["<tool_call>\n<function=", "<function=f", "<function=f>\n", "<function=f> x"],
    "llama": ['{"name": "f"', '{"name": "f", "parameters"', "{}", '{"a": {"name": "f"}}'],
    "granite": ["<|tool_call|>", '<|tool_call|>[{"name": "f"', "<|tool_call|>none"],
    "phi": ["functools[", "<|tool_call|>[1]<|/tool_call|>"],
}


@pytest.mark.parametrize(
    ("syntax", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts]
)
def test_broken_calls_are_content(syntax, text):
    for before in ("", "Well. ") if syntax != "llama" else ("",):
        assert split(before + text, SYNTAXES[syntax]) == (before + text, "", [])


def test_a_good_call_after_a_broken_one():
    text = f"<tool_call>oh {CALL} so"
    assert split(text, HERMES) == ("<tool_call>oh so", "", [("weather", BERN)])


def test_words_before_and_after_a_call_stay_apart():
    assert split(f"One\n\n{CALL}\nTwo", HERMES) == ("One\n\nTwo", "", [("weather", BERN)])
    assert split(f"One {CALL}\n", HERMES) == ("One", "", [("weather", BERN)])


def test_a_call_that_breaks_off_keeps_the_arguments_that_came():
    cut = CALL[: CALL.index("Bern") + 2]
    assert split(cut, HERMES) == ("", "", [("weather", '{"city": "Be')])
    cut = "<function=weather><parameter=city>\nBe"
    assert split(cut, SYNTAXES["qwen-coder"]) == ("", "", [("weather", '{"city": "Be')])
    cut = "<function=weather><parameter=city>\nBern\n</parameter>\n"
    assert split(cut, SYNTAXES["qwen-coder"]) == ("", "", [("weather", '{"city": "Bern"')])
    odd = f'<tool_call>{{"name": "weather", "arguments": {BERN} oops }}</tool_call>'
    assert split(odd, HERMES) == ("oops }</tool_call>", "", [("weather", BERN)])


def test_arguments_come_as_they_are_written():
    """The name first, then each letter with the piece that brought it."""
    parts = [[(p.name, p.text) for p in run_of] for run_of in steps(list(CALL), HERMES)]
    begin = CALL.index(BERN)
    assert not any(parts[:begin])
    assert parts[begin] == [("weather", "{")]
    for offset, letter in enumerate(BERN):
        assert parts[begin + offset] == [("weather", letter)]
    assert not any(parts[begin + len(BERN) :])


def test_texts_in_tags_come_as_they_are_written():
    text = "<function=weather><parameter=city>\nBern, north</parameter></function>"
    parts = ["".join(p.text for p in step) for step in steps(list(text), SYNTAXES["qwen-coder"])]
    assert parts[text.index("Bern") : text.index("Bern") + 4] == list("Bern")


def steps(pieces, syntax):
    splitter = Splitter(
        syntax, None, {"weather": {"properties": {"city": {"type": "string"}}}}, str
    )
    return [*(splitter.push(piece) for piece in pieces), splitter.finish()]


THOUGHT = [
    ("tags", False, "<think>\nhm\n</think>\n\nHi ", ("Hi ", "hm")),
    ("tags", False, "\n<think>hm</think>", ("", "hm")),
    ("tags", True, "hm\n</think>\nHi", ("Hi", "hm")),
    ("tags", True, "<think>\nhm</think>Hi", ("Hi", "hm")),
    ("tags", True, "never ends ", ("", "never ends ")),
    ("tags", False, "Hi <think> there", ("Hi <think> there", "")),
    ("tags", False, " Hi", (" Hi", "")),
    ("tags", False, "<thin", ("<thin", "")),
    ("tags", False, "<think></think>", ("", "")),
    ("tags", False, "<think>a</think><response>b</response>", ("b", "a")),
    ("tags", False, "<think>a</think>b</response>", ("b</response>", "a")),
    ("tags", False, "<think>a <think> b</think>c</think>", ("c</think>", "a <think> b")),
    ("mistral", False, "[THINK]hm[/THINK]Hi", ("Hi", "hm")),
    ("granite", False, "Here is my thought process: hm Here is my response: Hi", ("Hi", "hm")),
    ("granite", False, "Here's my thought process: hm Here's my response:Hi", ("Hi", "hm")),
    ("granite", False, "Here is my answer: Hi", ("Here is my answer: Hi", "")),
    ("none", False, "<think>hm</think>", ("<think>hm</think>", "")),
]


@pytest.mark.parametrize(("thoughts", "thinking", "text", "wanted"), THOUGHT)
def test_reasoning(thoughts, thinking, text, wanted):
    assert split(text, None, THOUGHTS[thoughts], thinking=thinking)[:2] == wanted


def test_calls_after_reasoning_and_none_in_it():
    text = f"<think>I could {CALL}</think>{CALL}"
    assert split(text, HERMES, TAGS) == ("", f"I could {CALL}", [("weather", BERN)])


def test_it_says_whether_it_reasons():
    splitter = Splitter(None, TAGS, {}, str)
    seen = []
    for piece in ["<thi", "nk>", "a", "</thi", "nk>", "b"]:
        splitter.push(piece)
        seen.append(splitter.in_reasoning)
    assert seen == [False, True, True, True, False, False]
    assert Splitter(None, TAGS, {}, str, thinking=True).in_reasoning


def test_without_marks_text_comes_at_once():
    """But for white space at its end and what may begin a mark."""
    splitter = Splitter(HERMES, TAGS, {}, str)
    texts = [
        "".join(p.text for p in splitter.push(x)) for x in ("Hi", " ", "th", "ere <", "t", "x")
    ]
    assert texts == ["Hi", "", " th", "ere", "", " <tx"]


@pytest.mark.parametrize("thoughts", [None, TAGS])
def test_white_space_waits_only_where_a_mark_can_come(thoughts):
    """Every line break of an answer would come a token late."""
    splitter = Splitter(None, thoughts, {}, str)
    texts = ["".join(p.text for p in splitter.push(x)) for x in ("Hi.", "\n", "\n", "You", " ")]
    assert texts == ["Hi.", "\n", "\n", "You", " "]


def test_white_space_comes_at_once_after_reasoning():
    splitter = Splitter(None, TAGS, {}, str)
    texts = ["".join(p.text for p in splitter.push(x)) for x in ("<think>a", "\n", "</think>")]
    texts += ["".join(p.text for p in splitter.push(x)) for x in ("\n", "Hi.", "\n")]
    assert texts == ["a", "", "", "", "Hi.", "\n"]


MEGABYTE = 1 << 20
HOSTILE = [
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_cal"),
    ("hermes", '<tool_call>{"a":'),
    ("hermes", '<tool_call>{"name":"f","x":"'),
    ("hermes", CALL),
    ("hermes", " "),
    ("granite", '<|tool_call|>[{"name":"f"},'),
    ("llama", '{"name":"f","parameters":{}};'),
    ("mistral", "[TOOL_CALLS]a[ARGS]"),
    ("mistral", "["),
    ("phi", "functools["),
    ("qwen-coder", "<function=f><parameter="),
    ("qwen-coder", "<function=f><parameter=a>\n1\n</parameter>"),
]


@pytest.mark.parametrize(("syntax", "unit"), HOSTILE)
def test_a_hostile_megabyte_takes_linear_time(syntax, unit):
    """A generous bound: what grows with the square takes hours."""
    text = (unit * (MEGABYTE // len(unit) + 1))[:MEGABYTE]
    begin = time.process_time()
    for pieces in ([text], [text[i : i + 1000] for i in range(0, len(text), 1000)]):
        parts = run(pieces, SYNTAXES[syntax], TAGS)
        assert sum(len(part.text) for part in parts) <= 2 * len(text)
    assert time.process_time() - begin < 40
