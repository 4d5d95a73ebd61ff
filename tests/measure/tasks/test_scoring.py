"""What counts as right."""

import pytest

from hasten.errors import UsageError
from hasten.measure.tasks import scoring
from hasten.measure.tasks.scoring import load_function, match_patterns, normalise, own_score


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" Paris.\n", "paris"),
        ('"Straße"', "STRASSE"),
        ("a \t b", "a b"),
        ("\uff14\uff12", "42"),  # full-width digits
        ("(b)", "B"),
    ],
)
def test_what_is_the_same_answer(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("-4", "4"), ("a b", "ab"), ("4.5", "45"), ("é", "e"), ("?", "")]
)
def test_what_is_another_answer(one, other):
    assert normalise(one) != normalise(other)


def test_patterns_match_anywhere_in_an_answer():
    pairs = [(r"\b42\b", "it is\n42."), (r"\b42\b", "it is 421"), ("^ü", "über"), ("", "")]
    assert match_patterns(pairs, [1, 2, 3, 4]) == [True, False, True, True]
    assert match_patterns([], []) == []


def test_a_pattern_that_runs_wild_is_stopped_and_named(monkeypatch):
    monkeypatch.setattr(scoring, "MATCH_SECONDS", 1.0)
    wild = r"(a+)+$"
    with pytest.raises(UsageError, match=r"pattern of line 7, '\(a\+\)\+\$', was not done"):
        match_patterns([("a", "a"), (wild, "a" * 60 + "b"), ("a", "a")], [3, 7, 9])


def test_functions_come_from_files_and_modules(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text("def is_right(prompt, output, expected):\n    return output == expected * 2\n")
    function = load_function(f"{file}:is_right")
    assert own_score(function, "p", "abab", "ab", 1) == 1.0
    assert own_score(function, "p", "ab", "ab", 1) == 0.0
    assert load_function("operator:eq")(1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judge", "names no function"),
        ("no_such_module_here:f", "cannot import no_such_module_here: ModuleNotFoundError"),
        ("/none.py:f", "cannot import /none.py: FileNotFoundError"),
        ("operator:none", "has no function 'none'"),
        ("operator:__doc__", "has no function '__doc__'"),
    ],
)
def test_functions_that_are_not_there(name, message):
    with pytest.raises(UsageError) as caught:
        load_function(name)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [2, -0.1, float("nan"), "yes", None])
def test_a_score_is_from_0_to_1(value):
    with pytest.raises(UsageError, match="for line 4"):
        own_score(lambda *_: value, "p", "o", "e", 4)


def test_a_function_that_fails_is_named_with_its_item():
    with pytest.raises(UsageError, match="failed on line 4: ZeroDivisionError"):
        own_score(lambda *_: 1 / 0, "p", "o", "e", 4)
