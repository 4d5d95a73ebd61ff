"""Runs of splitters, and what came out of them."""

import itertools

from hypothesis import strategies as st

from hasten.serve.formats.granite import GRANITE
from hasten.serve.formats.hermes import HERMES
from hasten.serve.formats.llama import LLAMA
from hasten.serve.formats.mistral import MistralCalls
from hasten.serve.formats.phi import PHI
from hasten.serve.formats.qwen_coder import QwenCoderCalls
from hasten.serve.formats.reasoning import GRANITE_THOUGHTS, MISTRAL_THOUGHTS, TAGGED_THOUGHTS
from hasten.serve.formats.splitter import Splitter

SYNTAXES = {
    "hermes": HERMES,
    "granite": GRANITE,
    "phi": PHI,
    "llama": LLAMA,
    "mistral": MistralCalls(listed=True),
    "mistral-named": MistralCalls(listed=False),
    "qwen-coder": QwenCoderCalls(),
}
THOUGHTS = {"none": None, "tags": TAGGED_THOUGHTS, "mistral": MISTRAL_THOUGHTS} | {
    "granite": GRANITE_THOUGHTS
}
TOOLS = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
    "f": {"type": "object", "properties": {}},
}


def run(pieces, syntax=None, thoughts=None, *, thinking=False, tools=TOOLS):
    """All parts of an output that comes in these pieces."""
    ids = (f"id{number}" for number in itertools.count())
    splitter = Splitter(syntax, thoughts, tools, lambda: next(ids), thinking=thinking)
    parts = [part for piece in pieces for part in splitter.push(piece)]
    return parts + splitter.finish()


def joined(parts):
    """Content, reasoning, and (name, arguments) of each call; checks what parts carry."""
    texts = {"content": "", "reasoning": ""}
    calls = []
    for part in parts:
        if part.kind != "call":
            assert (part.number, part.id, part.name) == (0, "", "")
            texts[part.kind] += part.text
            continue
        if part.number == len(calls):
            calls.append([part.name, ""])
        assert part.number == len(calls) - 1
        assert part.id == f"id{part.number}"
        assert part.name == calls[-1][0]
        calls[-1][1] += part.text
    return texts["content"], texts["reasoning"], [tuple(call) for call in calls]


def split(text, *args, **options):
    """What a whole text joins to, the same in one piece and letter by letter."""
    whole = joined(run([text], *args, **options))
    assert joined(run(list(text), *args, **options)) == whole
    return whole


@st.composite
def cuts(draw, text):
    """Some cut of a text into pieces."""
    places = draw(st.lists(st.integers(0, len(text)), max_size=12))
    return [text[a:b] for a, b in itertools.pairwise([0, *sorted(places), len(text)])]
