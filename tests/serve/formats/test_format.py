"""Formats are chosen by templates, and templates take what formats prepare."""

import json
import re

import pytest
from chat_templates import CHATML, QWEN
from templates import TEMPLATES, template

from hasten.models.chat import ChatTemplate
from hasten.serve.formats import find_format
from hasten.serve.jobs import Conversation, ToolChoice

WANTED = {
    "chatml": ("generic", False, False),
    "llama2": ("generic", False, False),
    "zephyr": ("generic", False, False),
    "gemma": ("generic", False, False),
    "functionary": ("generic", False, False),
    "r1": ("generic", False, True),
    "llama3": ("llama", True, False),
    "qwen": ("hermes", True, True),
    "mistral": ("mistral", True, False),
    "mistral3": ("mistral", True, True),
    "phi4": ("phi", True, False),
    "granite3": ("granite", True, True),
    "qwen-coder": ("qwen-coder", True, False),
}


def tool(name, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": f"What {name} does", "parameters": schema}
    return {"type": "function", "function": function}


def call(number, **arguments):
    function = {"name": "weather", "arguments": arguments}
    return {"id": f"call_{number:024}", "type": "function", "function": function}


WEATHER = tool("weather", city={"type": "string"})
USER = {"role": "user", "content": "Weather in Bern?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [call(0, city="Bern")]}
TWO_CALLS = {"role": "assistant", "content": "Well.", "tool_calls": [call(0, city="B"), call(1)]}
RESULTS = [
    {"role": "tool", "tool_call_id": call(1)["id"], "content": "second"},
    {"role": "tool", "tool_call_id": call(0)["id"], "content": "first"},
]


def render(name, messages, tools=(WEATHER,), **options):
    """The prepared conversation and its text."""
    form = find_format(template(name))
    ready = form.prepare(Conversation(messages, tools, **options))
    text = template(name).render(ready.messages, tools=list(ready.tools) or None, **ready.extra)
    return ready, text


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_chooses_the_format(name):
    form = find_format(template(name))
    assert (form.name, form.tools, form.reasoning) == WANTED[name]


def test_no_template_and_named_ones():
    assert find_format(None).name == "generic"
    assert not find_format(None).tools
    assert find_format(ChatTemplate(CHATML, tool_source=QWEN)).name == "hermes"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_takes_tools_calls_and_results(name):
    messages = [USER, CALLS, {**RESULTS[1]}, {"role": "assistant", "content": "21 °C"}, USER]
    if name == "mistral":
        messages = messages[:3]  # its template counts messages in its own way
    ready, text = render(name, messages)
    assert "weather" in text
    assert "first" in text or name == "llama2"
    assert all(m["content"] is not None for m in ready.messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_hidden_tools_are_nowhere(name):
    ready, text = render(name, [USER], tool_choice=ToolChoice("none"))
    assert ready.tools == ()
    assert "What weather does" not in text
    shown = render(name, [USER])[1]
    assert "What weather does" in shown


def test_a_template_without_tools_is_told_how_to_call_them():
    system = {"role": "system", "content": "Be brief."}
    ready, text = render("chatml", [system, USER, TWO_CALLS, *RESULTS, USER])
    first, _, calls, results = ready.messages
    assert first["content"].startswith("Be brief.\n\n# Tools")
    assert json.dumps(WEATHER) in first["content"]
    assert "<tool_call>" in first["content"]
    assert calls["content"].startswith('Well.\n<tool_call>\n{"name": "weather", "arguments"')
    assert calls["content"].count("<tool_call>") == 2
    assert results["role"] == "user"
    assert results["content"] == (
        "<tool_response>\nsecond\n</tool_response>\n<tool_response>\nfirst\n</tool_response>\n"
        "Weather in Bern?"
    )
    assert ready.tools == ()
    assert text.count("<|im_start|>") == 5


def test_without_a_system_message_there_is_one_only_for_tools():
    assert render("chatml", [USER])[0].messages[0]["role"] == "system"
    assert render("chatml", [USER], ())[0].messages == [USER]


def test_a_template_without_system_messages_gets_tools_from_the_user():
    ready, text = render("gemma", [USER])
    assert [m["role"] for m in ready.messages] == ["user"]
    assert ready.messages[0]["content"].endswith("\n\nWeather in Bern?")
    assert text.startswith("<s><start_of_turn>user\n# Tools")


def test_one_call_each_where_the_template_takes_no_more():
    ready, _ = render("llama3", [USER, TWO_CALLS, *RESULTS, USER])
    roles = [m["role"] for m in ready.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert [m["content"] for m in ready.messages[1:5]] == ["Well.", "first", "", "second"]
    assert [m["tool_calls"][0]["id"] for m in ready.messages[1:5:2]] == [
        call(0)["id"],
        call(1)["id"],
    ]


def test_results_without_ids_keep_their_order():
    results = [{"role": "tool", "content": text} for text in ("a", "b", "c")]
    ready, _ = render("llama3", [USER, TWO_CALLS, *results])
    assert [m["content"] for m in ready.messages[2:]] == ["a", "", "b", "c"]


def test_short_ids_where_the_template_wants_them():
    own = {**CALLS, "tool_calls": [{**call(0), "id": "abcDEF123"}]}
    ready, text = render("mistral", [USER, TWO_CALLS, *RESULTS, own])
    ids = [c["id"] for m in ready.messages for c in m.get("tool_calls", ())]
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", found) for found in ids)
    assert ids[2] == "abcDEF123"
    assert ids[0] != ids[1]
    assert [m["tool_call_id"] for m in ready.messages if m["role"] == "tool"] == ids[1::-1]
    assert f'"id": "{ids[0]}"' in text
    assert re.fullmatch("[a-zA-Z0-9]{9}", find_format(template("mistral")).new_id())


def test_ids_are_fresh():
    ids = {find_format(template("qwen")).new_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("call_[a-zA-Z0-9]{24}", found) for found in ids)


def test_tools_go_where_the_template_looks_for_them():
    ready, text = render("phi4", [USER])
    assert json.loads(ready.messages[0]["tools"]) == [WEATHER["function"]]
    assert "<|tool|>[" in text
    system = {"role": "system", "content": "Be brief."}
    assert render("phi4", [system, USER])[0].messages[0]["content"] == "Be brief."


def test_calls_are_spelled_where_the_template_has_no_place_for_them():
    _, text = render("granite3", [USER, CALLS, RESULTS[1]])
    assert '<|tool_call|>[{"name": "weather", "arguments": {"city": "Bern"}}]' in text
    assert "<|start_of_role|>tool<|end_of_role|>first" in text


def test_both_names_of_thinking_are_filled():
    """Templates know it under one of two."""
    for given in ("enable_thinking", "thinking"):
        ready, _ = render("granite3", [USER], extra={given: False})
        assert ready.extra == {"enable_thinking": False, "thinking": False}


def test_what_the_client_sent_stays_as_it_is():
    messages = [USER, TWO_CALLS, *RESULTS]
    before = json.dumps(messages)
    for name in TEMPLATES:
        if name != "gemma":
            render(name, messages)
    assert json.dumps(messages) == before


def parts_of(form, text, prompt="", **options):
    splitter = form.splitter(prompt, Conversation([USER], **options))
    return [(p.kind, p.text) for p in (*splitter.push(text), *splitter.finish())]


def test_calls_are_looked_for_only_where_there_are_tools():
    form = find_format(template("qwen"))
    text = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    assert parts_of(form, text) == [("content", text)]
    assert parts_of(form, text, tools=[WEATHER], tool_choice=ToolChoice("none")) == [
        ("content", text)
    ]
    assert parts_of(form, text, tools=[WEATHER]) == [("call", "{}")]


@pytest.mark.parametrize(
    ("prompt", "last", "reasoning"),
    [
        ("<|im_start|>assistant\n", None, False),
        ("<|im_start|>assistant\n<think>\n", None, True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, False),
        ("What is <think> ?<|im_end|>\n<|im_start|>assistant\n", None, False),
        ("...<think>a", "<think>a", True),
        ("...<think>a</think>b", "<think>a</think>b", False),
        ("<think>\nb", "b", False),
    ],
)
def test_a_prompt_may_have_begun_the_reasoning(prompt, last, reasoning):
    form = find_format(template("r1"))
    messages = [USER] if last is None else [USER, {"role": "assistant", "content": last}]
    conversation = Conversation(messages, continue_last=last is not None)
    splitter = form.splitter(prompt, conversation)
    assert splitter.in_reasoning == reasoning
    kinds = {part.kind for part in (*splitter.push("text"), *splitter.finish())}
    assert kinds == {"reasoning" if reasoning else "content"}
