"""What a line asks for, and what lines are refused."""

import json

import pytest
from batch_fakes import CHAT, line
from hypothesis import given
from hypothesis import strategies as st

from hasten.serve.batch.answer import Seen, Tally, make_id, render_answer, render_error
from hasten.serve.batch.lineset import LineSet
from hasten.serve.batch.request import LineError, custom_id, parse

URLS = {CHAT, "/v1/embeddings"}


def test_a_line_names_endpoint_and_model():
    request = parse(line("a").encode(), URLS, None)
    assert (request.custom_id, request.url, request.model) == ("a", CHAT, "m")
    assert json.loads(request.body)["messages"] == [{"role": "user", "content": "hello"}]


def test_the_model_is_replaced_and_the_rest_left_as_it_is():
    body = '{"model": "gpt-4o-mini", "seed": 123456789012345678901234567890, "x": 1.10}'
    text = f'{{"custom_id": "a", "method": "POST", "url": "{CHAT}", "body": {body}}}'
    request = parse(text.encode(), URLS, "mine")
    assert request.model == "gpt-4o-mini"
    assert b'"model":"mine"' in request.body
    assert b"123456789012345678901234567890" in request.body
    assert b"1.10" in request.body


@pytest.mark.parametrize(
    ("text", "code", "name"),
    [
        ("nonsense", "invalid_json_line", None),
        ("[1]", "invalid_json_line", None),
        ('{"custom_id": "a"', "invalid_json_line", None),
        (line(None), "missing_custom_id", None),
        (line(""), "missing_custom_id", None),
        (line(7), "missing_custom_id", None),
        (line("a", method="GET"), "invalid_method", "a"),
        (line("a", method=None), "invalid_method", "a"),
        (line("a", url="/v1/images"), "invalid_url", "a"),
        (line("a", url=["x"]), "invalid_url", "a"),
        (line("a", body=None), "invalid_body", "a"),
        (line("a", body=[1]), "invalid_body", "a"),
        (line("a", body={"model": "m", "stream": True}), "stream_not_supported", "a"),
    ],
)
def test_bad_lines_are_refused_and_keep_their_name(text, code, name):
    with pytest.raises(LineError) as raised:
        parse(text.encode(), URLS, "m")
    assert (raised.value.code, raised.value.custom_id) == (code, name)


@given(st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"custom_id":.{,30}\}'))
def test_no_line_breaks_the_reader(text):
    custom_id(text)
    with pytest.raises(LineError):
        parse(text, URLS, "m")


def test_depth_does_not_break_the_reader():
    deep = b"[" * 200_000 + b"]" * 200_000
    with pytest.raises(LineError):
        parse(
            b'{"custom_id":"a","method":"POST","url":"' + CHAT.encode() + b'","body":' + deep,
            URLS,
            "m",
        )


@given(st.text(min_size=1).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text)))
def test_names_come_back_as_they_were(name):
    request = parse(line(name).encode(), URLS, None)
    text = render_answer("batch_req_x", request.custom_id, 200, "req", b'{\r\n "a": "b\\n"\n}\n')
    assert text.count(b"\n") == 1
    answer = json.loads(text)
    assert answer["custom_id"] == name == custom_id(line(name).encode())
    assert answer["response"] == {"status_code": 200, "request_id": "req", "body": {"a": "b\n"}}
    assert answer["error"] is None


def test_tally_adds_up_what_the_endpoints_tell():
    tally = Tally()
    run = "0123456789abcdef"
    id_ = make_id(run, 7)
    chat = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}'
    responses = (
        b'{"usage": {"input_tokens": 10, "output_tokens": 4, "input_tokens_details":'
        b' {"cached_tokens": 3}, "output_tokens_details": {"reasoning_tokens": 1}}}'
    )
    for body in (chat, responses, b'{"usage": null}', b"{}", b'{"usage": "much"}', b"[1]"):
        assert tally.count(render_answer(id_, "c", 200, "r", body)) == Seen(run, 7, False)
    assert tally.count(render_answer(id_, "c", 400, "r", chat)).failed
    assert tally.count(render_error(id_, None, "code", "message")).failed
    assert tally == Tally(8, 2, 15, 3, 6, 1)
    for wrong in (b"{}", render_error("batch_req_1", None, "code", "message")):
        with pytest.raises(ValueError, match="answer"):
            tally.count(wrong)
    assert tally.answered == 8


@given(st.lists(st.integers(0, 5000)))
def test_line_sets_are_sets(numbers):
    lines = LineSet()
    seen: set[int] = set()
    for number in numbers:
        assert lines.add(number) == (number not in seen)
        seen.add(number)
    assert len(lines) == len(seen)
    assert {number for number in range(6000) if number in lines} == seen
