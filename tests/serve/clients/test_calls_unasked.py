"""Reasoning, a text and a call, as a model writes them by itself, to the clients of each protocol.

The model here recites (see `write_reciting_model`), for a random one never calls a tool.
"""

import json

from client_models import RECITED

QUESTION = [{"role": "user", "content": "Rain?"}]
THOUGHT, TEXT, ARGUMENTS = "I look it up.", "Let me see.", {"city": "Oslo"}
TOKENS = len(RECITED) + 1  # and the end
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}


def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where.
    """
    return city


def test_openai_chat(openai_client):
    asked = {"model": "recite", "messages": QUESTION, "temperature": 0}
    asked["tools"] = [{"type": "function", "function": FUNCTION}]
    create = openai_client.chat.completions.create
    answer = create(**asked)
    (choice,) = answer.choices
    message = choice.message
    assert (message.reasoning_content, message.content) == (THOUGHT, TEXT)
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", ARGUMENTS)
    assert choice.finish_reason == "tool_calls"
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.completion_tokens_details.reasoning_tokens in (1, 2)

    deltas = [choice.delta for chunk in create(**asked, stream=True) for choice in chunk.choices]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert (thought, "".join(delta.content or "" for delta in deltas)) == (THOUGHT, TEXT)
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.function.name] == ["weather"]
    arguments = [call.function.arguments for call in calls if call.function.arguments]
    assert json.loads("".join(arguments)) == ARGUMENTS
    assert len(arguments) > 1  # as they are written

    plain = create(model="recite", messages=QUESTION, tools=asked["tools"], tool_choice="none")
    assert plain.choices[0].message.tool_calls is None


def test_openai_responses(openai_client):
    asked = {"model": "recite", "input": "Rain?", "temperature": 0}
    asked["tools"] = [{"type": "function", **FUNCTION, "strict": False}]
    made = openai_client.responses.create(**asked)
    thought, text, call = made.output
    assert (thought.type, thought.content[0].text) == ("reasoning", THOUGHT)
    assert (text.type, text.content[0].text) == ("message", TEXT)
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        ARGUMENTS,
    )
    assert (made.status, made.usage.output_tokens) == ("completed", TOKENS)
    events = list(openai_client.responses.create(**asked, stream=True))
    added = [event.item.type for event in events if event.type == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call"]
    final = events[-1].response
    assert [item.type for item in final.output] == added
    assert final.output[2].arguments == call.arguments


def test_ollama(ollama_client):
    asked = {"tools": [weather], "options": {"temperature": 0}}
    answer = ollama_client.chat("recite", QUESTION, **asked)
    assert (answer.message.thinking, answer.message.content) == (THOUGHT, TEXT)
    (call,) = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", ARGUMENTS)
    assert (answer.done_reason, answer.eval_count) == ("stop", TOKENS)
    lines = list(ollama_client.chat("recite", QUESTION, stream=True, think=True, **asked))
    assert "".join(line.message.thinking or "" for line in lines) == THOUGHT
    assert "".join(line.message.content for line in lines) == TEXT
    (call,) = [call for line in lines for call in line.message.tool_calls or ()]
    assert call.function.arguments == ARGUMENTS
    whole = ollama_client.generate("recite", "Rain?", options={"temperature": 0})
    assert whole.thinking == THOUGHT


def test_anthropic(anthropic_client):
    asked = {
        "model": "recite",
        "messages": QUESTION,
        "max_tokens": 50,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "extra_body": {"temperature": 0},
    }
    message = anthropic_client.messages.create(**asked)
    thought, text, call = message.content
    assert (thought.type, thought.thinking) == ("thinking", THOUGHT)
    assert (text.type, text.text) == ("text", TEXT)
    assert (call.type, call.name, call.input) == ("tool_use", "weather", ARGUMENTS)
    assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", TOKENS)
    with anthropic_client.messages.stream(**asked) as stream:
        begun = [e.content_block.type for e in stream if e.type == "content_block_start"]
        final = stream.get_final_message()
    assert begun == ["thinking", "text", "tool_use"]
    assert [block.type for block in final.content] == begun
    assert final.content[2].input == ARGUMENTS

    # The whole of it goes back with what the tool gave.
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    told = [{"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    after = anthropic_client.messages.create(**asked | {"messages": [*QUESTION, *told]})
    assert after.stop_reason == "tool_use"
