"""What the benchmark of a search's claims says of two recipes."""

from optimizing import compare


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


def test_another_choice_or_another_figure_does_not_hold():
    assert not compare(recipe(), recipe(chosen="b"))["holds"]
    assert not compare(recipe(), recipe(kl=0.2))["holds"]
