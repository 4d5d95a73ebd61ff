"""Answers of a tiny model on the path that serves users, and two models beside each other."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hasten.errors import CapacityError, UsageError
from hasten.generation import Engine
from hasten.measure.tasks.compare import compare_results, what_few_show
from hasten.measure.tasks.reading import parse_tasks
from hasten.measure.tasks.run import ItemResult, TaskResults, prompt_tokens, run_tasks
from hasten.models import load_model
from hasten.types import EngineOptions, SamplingParams

EXACT = EngineOptions(weights="f32", kv="f32", threads=1, max_context=96, max_sequences=4)


def parse(*lines, **how):
    return parse_tasks("q.jsonl", "\n".join(map(json.dumps, lines)).encode(), **how)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def engine(model):
    with Engine(model, EXACT) as running:
        yield running


def alone(engine, text, max_tokens):
    ids = engine.model.tokenizer.encode(text)
    outputs = list(engine.generate(ids, SamplingParams(max_tokens=max_tokens)))
    return "".join(one.text for one in outputs), [t for one in outputs for t in one.tokens]


def test_answers_are_those_that_a_user_gets(engine):
    texts = ["the cat", "a dog and", "one two three", "it is 1", "so", "why (not)"]
    whole = [alone(engine, text, 12) for text in texts]
    lines = [
        {"text": text, "answer": answer or "-", "max_tokens": 12}
        for text, (answer, _) in zip(texts, whole, strict=True)
    ]
    lines[0]["answer"] = "something else"
    lines[1]["pattern"] = ".*"
    del lines[1]["answer"]
    seen = []
    results = run_tasks(engine, parse(*lines), on_progress=seen.append)
    assert [list(one.tokens) for one in results.items] == [tokens for _, tokens in whole]
    assert [one.text for one in results.items] == [answer for answer, _ in whole]
    rest = [float(bool(answer.strip())) for answer, _ in whole[2:]]
    assert 1.0 in rest
    assert [one.score for one in results.items] == [0, 1, *rest]
    assert seen == list(range(1, 7))
    assert results.mean == pytest.approx((1 + sum(rest)) / 6)
    assert all(one.gap >= 0 for one in results.items)


def test_a_choice_is_the_likeliest_continuation_per_byte(engine):
    text, choices = "the cat ", ["sat", "ran off", "x"]
    found = run_tasks(engine, parse({"text": text, "choices": choices, "answer": 0})).items[0]
    tokenizer = engine.model.tokenizer
    for choice, got in zip(choices, found.logprobs, strict=True):
        ids = tokenizer.encode(text + choice)
        rows = np.concatenate([rows.copy() for _, rows in engine.score(ids)]).astype(np.float64)
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        first = len(tokenizer.encode(text))
        wanted = sum(rows[at - 1, ids[at]] for at in range(first, len(ids)))
        assert got == pytest.approx(wanted / len(choice), rel=1e-4)
    taken = int(np.argmax(found.logprobs))
    assert found.text == choices[taken]
    assert found.score == float(taken == 0)


def test_the_users_function_judges(engine):
    asked = []

    def judge(prompt, output, expected):
        asked.append((prompt, expected))
        return 0.25

    tasks = parse({"text": "ab", "expected": [1]}, {"text": "cd", "answer": "x"}, custom=True)
    results = run_tasks(engine, tasks, max_tokens=2, function=judge)
    assert asked == [("ab", [1]), ("cd", "x")]
    assert [one.score for one in results.items] == [0.25, 0.25]
    with pytest.raises(UsageError, match="no function"):
        run_tasks(engine, tasks)


def test_a_chat_template_is_used_as_in_a_chat(model, engine):
    from hasten.models.chat import ChatTemplate

    source = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    chatty = replace(model, text=replace(model.text, chat_template=lambda: ChatTemplate(source)))
    task = parse({"prompt": "hello", "answer": "x"}).tasks[0]
    assert prompt_tokens(chatty, task) == tuple(
        model.tokenizer.encode("[user:hello]", add_special=False)
    )
    assert prompt_tokens(model, task) == tuple(model.tokenizer.encode("hello"))
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(UsageError, match="line 1 holds a conversation"):
        run_tasks(engine, parse({"messages": two, "answer": "x"}))


def test_items_too_long_for_the_context_are_named_before_anything_runs(engine):
    steps = engine.statistics().steps
    tasks = parse(*({"text": "a" * size, "answer": "x"} for size in (3, 95, 96, 200)))
    with pytest.raises(CapacityError, match=r"2 of 4 items .* of 96 tokens; the first is line 3"):
        run_tasks(engine, tasks)
    assert engine.statistics().steps == steps
    assert not engine.has_work


def results(scores, tasks, tokens=None, gap=1.0):
    made = [
        ItemResult(float(score), str(score), (1,) if tokens is None else (tokens[at],), gap)
        for at, score in enumerate(scores)
    ]
    return TaskResults(tasks, tuple(made))


def test_flips_are_counted_listed_and_tested():
    tasks = parse(*({"prompt": f"q{at}", "answer": "x"} for at in range(100)))
    before, after = [1] * 80 + [0] * 20, [1] * 70 + [0] * 10 + [1] * 2 + [0] * 18
    found = compare_results(results(before, tasks), results(after, tasks))
    assert (found.lost, found.gained, found.items) == (10, 2, 100)
    assert found.loss.estimate == pytest.approx(0.08)
    assert found.loss.low > 0
    assert found.mcnemar_p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert [flip.line for flip in found.flips] == [*range(71, 82 - 1), 81, 82]
    first = found.flips[0].as_dict()
    assert (first["prompt"], first["expected"], first["before"], first["after"]) == (
        "q70", "x", "1", "0",
    )  # fmt: skip
    json.dumps(found.as_dict(), allow_nan=False)


def test_first_tokens_that_flip_are_counted_and_near_ties_told():
    tasks = parse(*({"prompt": f"q{at}", "answer": "x"} for at in range(3)))
    one = results([1, 1, 1], tasks, tokens=[5, 6, 7], gap=0.01)
    other = results([1, 1, 1], tasks, tokens=[5, 9, 8])
    found = compare_results(one, other)
    assert (found.generated, found.changed_first, found.near_ties) == (3, 2, 2)
    assert compare_results(other, one).near_ties == 0


def test_other_items_are_not_compared():
    tasks, others = (parse({"prompt": name, "answer": "x"}) for name in "ab")
    with pytest.raises(UsageError, match="different items"):
        compare_results(results([1], tasks), results([1], others))


def test_few_items_say_how_little_they_show():
    assert "12 items show little" in what_few_show(12)
    assert "up to 24 points" in what_few_show(12)
    assert what_few_show(20) is None
