from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.workload import Chat, Item, Session, Turn
from hasten.measure.workload_file import read_workload


def says(text):
    return Chat(({"role": "user", "content": text},))


def read(path, lines, **changes):
    path.write_text(lines if isinstance(lines, str) else "\n".join(lines))
    return read_workload(path, **{"output_tokens": 7, "warmup": 0} | changes)


def test_prompts_from_a_file(tmp_path):
    lines = ['{"prompt": "ab"}', "", '{"prompt": "c", "max_tokens": 3}', '{"prompt": "d"}']
    workload = read(tmp_path / "p.jsonl", lines, warmup=1)
    assert workload.items == (Item(says("ab"), 7), Item(says("c"), 3))
    assert workload.warmup == (Item(says("d"), 7),)
    assert workload.times is None
    assert len(read(tmp_path / "p.jsonl", lines, limit=1).items) == 1


def test_texts_tokens_and_conversations(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    lines = [{"text": "Once"}, {"tokens": [1, 2]}, {"messages": messages}]
    workload = read(tmp_path / "p.jsonl", [json.dumps(line) for line in lines])
    assert [item.prompt for item in workload.items] == ["Once", (1, 2), Chat(tuple(messages))]


def test_a_recorded_trace(tmp_path):
    lines = ['{"prompt": "a", "at": 1.5}', '{"prompt": "b", "at": 1.5}', '{"prompt": "c", "at": 4}']
    assert read(tmp_path / "t.jsonl", lines).times == (1.5, 1.5, 4)
    assert read(tmp_path / "t.jsonl", lines, warmup=1).times == (1.5, 1.5)
    turned = read(tmp_path / "t.jsonl", lines[::-1])
    assert turned.times == (1.5, 1.5, 4)
    assert turned.items[-1] == Item(says("c"), 7)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["nonsense"], "line 1 is not JSON"),
        (["{" * 100_000], "line 1 is not JSON"),
        (["5"], "line 1 is no JSON object"),
        (['{"max_tokens": 5}'], "line 1 has no prompt"),
        (['{"prompt": "a", "text": "b"}'], "'prompt' and 'text'"),
        (['{"prompt": 5}'], "'prompt' 5"),
        (['{"prompt": ""}'], "'prompt' ''"),
        (['{"tokens": []}'], "'tokens'"),
        (['{"tokens": [1, -1]}'], "'tokens'"),
        (['{"tokens": [true]}'], "'tokens'"),
        (['{"messages": [{"role": "user"}]}'], "'messages'"),
        (['{"messages": [{"role": "user", "content": 3}]}'], "'messages'"),
        (['{"prompt": "a", "max_token": 3}'], "unknown key 'max_token'"),
        (['{"prompt": "a", "max_tokens": 0}'], "max_tokens 0"),
        (['{"prompt": "a", "max_tokens": true}'], "max_tokens True"),
        (['{"prompt": "a", "max_tokens": 1e99}'], "max_tokens 1e"),
        (['{"prompt": "a", "at": -1}'], "at -1"),
        (['{"prompt": "a", "at": "now"}'], "at 'now'"),
        (['{"prompt": "a", "at": NaN}'], "at nan"),
        (['{"prompt": "a", "at": 1}', '{"prompt": "b"}'], "line 2 has no 'at'"),
        (['{"prompt": "a"}', '{"prompt": "b", "at": 1}'], "line 2 has an 'at'"),
        ([""], "holds 0 requests"),
        (["[1]"], "not of conversations"),
        (['[{"conversations": 3}]'], "not of conversations"),
        (["["], "is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "p.jsonl", lines)


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="cannot read requests"):
        read_workload(tmp_path / "none", output_tokens=1, warmup=0)
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(UsageError, match="not UTF-8"):
        read_workload(tmp_path / "latin", output_tokens=1, warmup=0)
    with pytest.raises(UsageError, match="warm-up takes 1"):
        read(tmp_path / "one", [json.dumps({"prompt": "a"})], warmup=1)


SHARED = [
    {
        "id": "a",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "One?"},
            {"from": "gpt", "value": "one two three"},
            {"from": "human", "value": "Two?"},
            {"from": "gpt", "value": "four"},
        ],
    },
    {"conversations": [{"from": "gpt", "value": "nobody asked"}]},
    {"conversations": [{"from": "human", "value": "alone"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}, "odd"]},
]


def test_first_messages_of_sharegpt(tmp_path):
    workload = read(tmp_path / "s.json", json.dumps(SHARED))
    system = {"role": "system", "content": "Be brief."}
    assert workload.items == (
        Item(Chat((system, {"role": "user", "content": "One?"})), 7),
        Item(says("Q"), 7),
    )


def test_conversations_of_sharegpt(tmp_path):
    counted = read(
        tmp_path / "s.json", json.dumps(SHARED), turns=5, count=lambda text: len(text.split())
    )
    assert counted.items == (
        Session("Be brief.", (Turn("One?", 3), Turn("Two?", 1))),
        Session(None, (Turn("Q", 1),)),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "prompt",
                    "messages",
                    "text",
                    "tokens",
                    "at",
                    "max_tokens",
                    "conversations",
                    "from",
                    "value",
                    "role",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values | st.text())
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("fuzz") / "w"
    content = value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        workload = read_workload(path, output_tokens=1, warmup=0, turns=2)
    except UsageError:
        return
    assert workload.items
