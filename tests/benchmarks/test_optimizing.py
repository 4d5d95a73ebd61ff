"""What the benchmark of a search's claims says of two recipes."""

from optimizing import compare, measured


def recipe(chosen="a", kl=0.1):
    accuracy = {"kl_divergence": {"estimate": kl}}
    listed = [
        {"label": "original", "accuracy_text": "calibration", "accuracy": None},
        {"label": "a", "accuracy_text": "evaluation", "accuracy": accuracy},
    ]
    return {"chosen": chosen, "passes": [], "settings": {}, "candidates": listed}


def test_two_recipes_that_say_the_same_hold():
    found = compare(recipe(), recipe())
    assert found["holds"]
    assert found["accuracies"] == {"of both": 1, "equal": 1}


def test_another_pass_or_another_figure_does_not_hold():
    other = {**recipe(), "passes": [{"pass": "gptq"}]}
    assert not compare(recipe(), other)["holds"]
    assert not compare(recipe(), recipe(kl=0.2))["holds"]


def test_a_line_that_was_cut_off_is_not_counted(tmp_path):
    place = tmp_path / ".fast.search"
    place.mkdir()
    (place / "journal.jsonl").write_text('{"a": 1}\n{"b": ')
    assert measured(tmp_path / "fast") == ['{"a": 1}\n']
