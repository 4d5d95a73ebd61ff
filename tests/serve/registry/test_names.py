"""Names are never paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.serve.registry.names import ModelName


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("smollm2", "smollm2"),
        ("smollm2:latest", "smollm2"),
        ("llama3.2:1b", "llama3.2:1b"),
        ("org/name", "org/name"),
        ("org/name:latest", "org/name"),
        ("hf.co/org/Name-GGUF:Q4_K_M", "org/Name-GGUF:Q4_K_M"),
        ("huggingface.co/org/name", "org/name"),
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct.Q4_1"),
    ],
)
def test_a_name_has_one_spelling(text, shown):
    assert str(ModelName.parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "/etc/passwd",
        "a//b",
        "a/b/c",
        "hf.co/name",
        "a..b",
        "~root",
        ".hidden",
        "a\n",
        "a\0b",
        "a b",
        "a\\b",
        "C:\\x",
        "a:b:c",
        "a:",
        ":b",
        "ａ",
        "x" * 97,
        "%2e%2e/x",
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UsageError, match="is no name"):
        ModelName.parse(text)


@given(st.text(alphabet="aZ0.:/-_\\~ \n\0é", max_size=20))
def test_no_name_is_a_path_to_elsewhere(text):
    try:
        name = ModelName.parse(text)
    except UsageError:
        return
    shown = str(name)
    assert ".." not in shown
    assert shown.count("/") <= 1
    assert shown[0].isalnum()
    assert str(ModelName.parse(shown)) == shown


def test_only_names_with_an_organisation_are_on_a_hub():
    assert ModelName.parse("name").repository is None
    assert ModelName.parse("org/name:Q8_0").repository == "org/name"
