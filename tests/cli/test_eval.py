"""`hasten eval` on a tiny model: figures that must come out, and what is refused."""

import json
import shutil

import pytest

SMALL = ("--tokens", "256", "--threads", "1")


def evaluate(hasten, *arguments):
    result = hasten("eval", *arguments, *SMALL, "--json", "-")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_a_model_in_float32_equals_itself(hasten, tiny_model):
    report = evaluate(hasten, str(tiny_model), "--weights", "f32", "--kv", "f32")
    accuracy = report["accuracy"]
    assert report["schema"] == "hasten.eval/1"
    assert accuracy["kl_divergence"]["high"] == 0
    assert accuracy["perplexity_ratio"]["estimate"] == 1
    assert accuracy["top1_agreement"]["low"] == 1
    assert report["text"]["context"] == 128
    assert report["text"]["tokens"] == accuracy["tokens"] == 254


def test_fewer_bits_cost_more(hasten, tiny_model):
    costs = [
        evaluate(hasten, str(tiny_model), "--weights", weights)["accuracy"]["kl_divergence"]
        for weights in ("bf16", "int8:32", "int4:32")
    ]
    assert 0 < costs[0]["estimate"] < costs[1]["estimate"] < costs[2]["estimate"]
    assert all(cost["low"] <= cost["estimate"] <= cost["high"] for cost in costs)
    assert costs[1]["high"] < costs[2]["low"]


def test_the_table_names_what_was_compared_and_how(hasten, tiny_model):
    out = hasten("eval", str(tiny_model), *SMALL, "--weights", "int8").out
    for expected in (
        "tiny (int8, KV bf16) against tiny in float32",
        "KL divergence",
        "top-1 agreement",
        "254 tokens of pydoc_data.topics, second half in windows of 128",
        "kl_divergence = mean of sum_v",
    ):
        assert expected in out


def test_an_artefact_is_compared_with_what_it_was_made_of(hasten, tiny_model, tmp_path):
    source, artefact = tmp_path / "source", tmp_path / "fast"
    shutil.copytree(tiny_model, source)
    made = hasten(
        *("optimize", str(source), "-o", str(artefact), "--weights", "int8:32", "--quick"),
        *("--input-len", "16", "--output-len", "4", "--tokens", "256", "--threads", "1"),
        *("--budget-kl", "100"),
    )
    assert made.status == 0, made.err
    report = evaluate(hasten, str(artefact))
    assert report["reference"]["path"] == str(source)
    assert report["accuracy"]["kl_divergence"]["estimate"] >= 0

    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    result = hasten("eval", str(artefact), *SMALL)
    assert result.status == 2
    assert "has changed since" in result.err
    shutil.rmtree(source)
    result = hasten("eval", str(artefact), *SMALL)
    assert result.status == 2
    assert "--against" in result.err
    assert hasten("eval", str(artefact), "--against", str(tiny_model), *SMALL).status == 0


def test_models_that_read_text_differently_are_not_compared(hasten, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = hasten("eval", str(tiny_model), "--against", str(other), *SMALL)
    assert result.status == 2
    assert "different tokens" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "/none.txt"), "cannot read text"),
        (("--tokens", "5"), "--tokens"),
        (("--context", "1"), "--context"),
        (("--context", "4096"), "max_context"),
        (("--weights", "int5"), "not a weight format"),
        (("--weights", "int4:64"), "groups that divide"),
        (("--against", "/none"), "none"),
    ],
)
def test_wrong_use_is_one_line(hasten, tiny_model, arguments, message):
    result = hasten("eval", str(tiny_model), *arguments)
    assert result.status in (1, 2)
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_a_text_of_the_user_that_is_too_short(hasten, tiny_model, tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("short")
    result = hasten("eval", str(tiny_model), "--text", str(text))
    assert result.status == 2
    assert "gives 4 tokens to score" in result.err


def test_a_text_with_fewer_tokens_than_wanted_is_used_and_said(hasten, tiny_model, tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 10)
    result = hasten("eval", str(tiny_model), "--text", str(text), "--threads", "1")
    assert result.status == 0
    assert "note.txt holds only" in result.err
    assert "tokens of note.txt" in result.out


@pytest.mark.model
def test_smollm2_as_its_file_carries_it_stays_close_to_float32(hasten):
    result = hasten("eval", "smollm2", "--tokens", "512", "--json", "-")
    accuracy = json.loads(result.out)["accuracy"]
    assert accuracy["kl_divergence"]["high"] < 0.01
    assert accuracy["top1_agreement"]["estimate"] > 0.94
    assert 0.97 < accuracy["perplexity_ratio"]["estimate"] < 1.03


def write_items(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


ITEMS = [
    {"text": f"{word} is", "choices": [" a", " the end", "b"], "answer": at % 3}
    for at, word in enumerate(["one", "two", "cat", "dog", "house", "tree", "it", "all"])
]


def test_labelled_items_of_a_model_against_itself(hasten, tiny_model, tmp_path):
    file = write_items(tmp_path / "q.jsonl", *ITEMS, ITEMS[0])
    flips = tmp_path / "flips.jsonl"
    common = ("--task", file, "--threads", "1", "--max-tokens", "4")
    same = hasten(
        *("eval", str(tiny_model), *common, "--weights", "f32", "--kv", "f32"),
        *("--json", "-", "--flips", str(flips)),
    )
    assert same.status == 0, same.err
    report = json.loads(same.out)
    found = report["task_accuracy"]
    assert report["tasks"]["items"] == found["items"] == 8
    assert report["tasks"]["duplicates"] == 1
    assert found["loss"]["estimate"] == found["lost"] == found["gained"] == 0
    assert found["loss"]["high"] > 0.3
    assert found["mcnemar_p"] == 1
    assert flips.read_text() == ""
    assert "1 lines of" in same.err
    assert "8 items show little" in same.err

    coarse = hasten(
        *("eval", str(tiny_model), *common, "--weights", "int4:32", "--flips", str(flips))
    )
    assert coarse.status == 0, coarse.err
    assert "against tiny in float32" in coarse.out
    listed = [json.loads(line) for line in flips.read_text().splitlines()]
    assert f"{len(listed)} lost" in coarse.out or listed == [] or "gained" in coarse.out
    assert all(one["score_before"] != one["score_after"] for one in listed)


def test_items_judged_by_a_function_of_the_users(hasten, tiny_model, tmp_path):
    judge = tmp_path / "judge.py"
    judge.write_text("def long(prompt, output, expected):\n    return len(output) >= expected\n")
    file = write_items(tmp_path / "q.jsonl", {"prompt": "a b c", "expected": 1, "max_tokens": 3})
    result = hasten(
        *("eval", str(tiny_model), "--task", file, "--score", f"{judge}:long", "--threads", "1"),
        *("--json", "-"),
    )
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["task_accuracy"]["reference_score"] == 1
    assert report["tasks"]["function"] == f"{judge}:long"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--score", "a:b"), "--score and --flips need --task"),
        (("--task", "/none.jsonl"), "cannot read items"),
        (("--task", "{bad}"), "line 2 has the unknown key 'x'"),
        (("--task", "{good}", "--text", "a.txt"), "one at a time"),
        (("--task", "{good}", "--score", "nothing"), "names no function"),
        (("--task", "{good}", "--max-context", "4"), "8 of 8 items do not fit the context of 4"),
    ],
)
def test_wrong_use_of_items_is_told_in_words(hasten, tiny_model, tmp_path, arguments, message):
    files = {
        "good": write_items(tmp_path / "good.jsonl", *ITEMS),
        "bad": write_items(tmp_path / "bad.jsonl", ITEMS[0], {"x": 1}),
    }
    result = hasten("eval", str(tiny_model), *(one.format(**files) for one in arguments))
    assert result.status in (1, 2)
    assert message in result.err
    assert result.out == ""
